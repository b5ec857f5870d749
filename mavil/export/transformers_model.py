"""The encoders as a model of Hugging Face's transformers.

An exported folder serves both: ``mavil.load(FOLDER)`` and, after ``import mavil.export.transformers_model``,
``AutoModel.from_pretrained(FOLDER)``. A folder written with ``mavil export --transformers`` brings a file that does this
import, so that ``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`` is enough where ``mavil`` is installed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from mavil.atomic_files import write_text
from mavil.config import ClassifyTask, Recipe
from mavil.export.folder import CONFIG, WEIGHTS, read_export
from mavil.export.hub import fetch_folder
from mavil.export.network import unloaded_network
from mavil.export.waveforms import WaveformFrontEnd, front_end_of
from mavil.models.masked import MaskedLearner
from mavil.models.tokens import patchify
from mavil.recipe import recipe_from_tree
from mavil.structs import Modality, UserError

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
"""Of ``from_pretrained``: what says which files of the Hub are meant."""

CODE = "modeling_mavil"
SOURCE = '''"""For transformers: the classes of this model. They need the package mavil."""

from mavil.export import transformers_model


class MavilConfig(transformers_model.MavilConfig):
    """See the package."""


class MavilModel(transformers_model.MavilModel):
    """See the package."""

    config_class = MavilConfig
'''
"""The file in a folder that transformers imports; its classes are its own, so that ``save_pretrained`` copies it along."""


class MavilConfig(PretrainedConfig):
    """The ``config.json`` of an exported folder.

    Args:
        recipe: the recipe as a tree.
        others: whatever else stands there.
    """

    model_type = "mavil"

    def __init__(self, recipe: dict[str, Any] | None = None, **others: Any) -> None:
        super().__init__(**others)
        self.recipe = recipe

    def as_recipe(self) -> Recipe:
        """The recipe, checked.

        Raises:
            UserError: there is none, or it is not complete.
        """
        if self.recipe is None:
            raise UserError(
                "this MavilConfig has no recipe: take it from an exported folder, with AutoConfig.from_pretrained"
            )
        return recipe_from_tree(self.recipe, CONFIG)


@dataclass
class MavilOutput(ModelOutput):
    """Of the modalities that were given; the others are ``None``.

    Attributes:
        audio_embeds, video_embeds: ``[B, Z]`` of length 1: what ``mavil.load`` gives for one window.
        audio_hidden_state, video_hidden_state: ``[B, c + N, D]``, what leaves the last block of the encoder, CLS first where
            there is one, through the norm behind it; a fine-tuned classifier has none, its tokens are as they are.
    """

    audio_embeds: Tensor | None = None
    video_embeds: Tensor | None = None
    audio_hidden_state: Tensor | None = None
    video_hidden_state: Tensor | None = None


class MavilModel(PreTrainedModel):
    """Encoders, fusion and projections under the names of an export.

    Args:
        config: with a recipe.

    Raises:
        UserError: the recipe is not complete.
    """

    config_class = MavilConfig
    base_model_prefix = "mavil"
    main_input_name = "input_values"
    _supports_sdpa = True
    _no_split_modules = ["PreNormBlock", "PostNormBlock", "SharedBlock"]  # noqa: RUF012 [transformers' own form]

    def __init__(self, config: MavilConfig) -> None:
        super().__init__(config)
        self.recipe = config.as_recipe()
        network = unloaded_network(self.recipe)
        for name, part in network.parts().items():
            self.add_module(name, part)
        # Not a child: its parameters are those of the parts, which have the names in the file. Nor is the front end, whose
        # tables are in no file and would be lost where transformers builds models without memory.
        self.__dict__["network"] = network
        self.__dict__["front_end"] = None
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: modules have initialised themselves, and a file with a missing tensor is refused before."""

    def forward(
        self,
        input_values: Tensor | None = None,
        pixel_values: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MavilOutput | tuple[Tensor, ...]:
        """Embed clips.

        Args:
            input_values: ``[B, L]`` waveforms in [-1, 1], 16 kHz, L the samples of ``audio.seconds``; or ``[B, S, M]``
                normalised log-mel spectrograms.
            pixel_values: ``[B, T, 3, H, H]``: uint8 frames, cropped and resized; or floats, normalised by ``video.mean`` and
                ``video.std`` of the recipe.
            return_dict: ``False``: a tuple of what is there, in the order of :class:`MavilOutput`.

        Raises:
            UserError: no input, one of another shape, or of a modality that the model does not have.
        """
        given: dict[Modality, Tensor] = {}
        if input_values is not None:
            given["audio"] = self._spectrograms(input_values)
        if pixel_values is not None:
            given["video"] = self._frames(pixel_values)
        if not given:
            raise UserError("nothing to embed: give input_values (sound) or pixel_values (frames)")
        output = MavilOutput()
        for modality, values in given.items():
            network = cast(MaskedLearner, self.network)
            encoder = network.encoder(modality)
            tokens = encoder(patchify(values.to(self.dtype), encoder.grid))
            output[f"{modality}_embeds"] = F.normalize(network.pool(modality, tokens), dim=-1)
            is_classifier = isinstance(self.recipe.task, ClassifyTask)
            output[f"{modality}_hidden_state"] = tokens if is_classifier else encoder.norm(tokens)
        return output if return_dict is not False else output.to_tuple()

    def _spectrograms(self, values: Tensor) -> Tensor:
        """Waveforms ``[B, L]`` or spectrograms ``[B, S, M]`` to ``[B, 1, S, M]``."""
        audio = self.recipe.audio
        if audio is None or "audio" not in self.recipe.modalities:
            raise UserError("input_values: this model has no audio branch")
        if values.ndim == 2:
            if self.front_end is None:
                with torch.device("cpu"):
                    self.__dict__["front_end"] = front_end_of(audio)
            front_end = cast(WaveformFrontEnd, self.front_end).to(values.device)
            if values.shape[1] != front_end.num_samples:
                raise UserError(
                    f"input_values of {values.shape[1]} samples: this model takes waveforms of {front_end.num_samples} "
                    f"({audio.seconds:g} s at 16 kHz); cut or fill yours, or use mavil.load, which takes any length"
                )
            return front_end(values.float())
        if tuple(values.shape[1:]) != (audio.num_steps, audio.num_mel_bins):
            raise UserError(
                f"input_values of shape {list(values.shape)}: give waveforms [B, L], or normalised spectrograms "
                f"[B, {audio.num_steps}, {audio.num_mel_bins}]"
            )
        return values.unsqueeze(1)

    def _frames(self, values: Tensor) -> Tensor:
        """``[B, T, 3, H, H]`` to ``[B, 3, T, H, H]`` normalised."""
        video = self.recipe.video
        if video is None or "video" not in self.recipe.modalities:
            raise UserError("pixel_values: this model has no video branch")
        expected = (video.num_frames, 3, video.size, video.size)
        if tuple(values.shape[1:]) != expected:
            raise UserError(f"pixel_values of shape {list(values.shape)}: give [B, {', '.join(map(str, expected))}]")
        if values.dtype == torch.uint8:
            mean, std = (255 * values.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (video.mean, video.std))
            values = (values.float() - mean) / std
        return values.transpose(1, 2)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *arguments: Any, config: Any = None, **options: Any
    ) -> MavilModel:
        """As transformers does it, of an exported folder or a Hub id, after the checks of ``mavil.load``.

        Raises:
            UserError: not an export, or one that is damaged or was tampered with.
        """
        hub_options = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            given = {name: value for name, value in hub_options.items() if value is not None}
            folder = fetch_folder(str(pretrained_model_name_or_path), **given)
        exported = read_export(folder)
        if not isinstance(config, PretrainedConfig):
            config = cls.config_class.from_pretrained(folder)
        state = {f"{part}.{name}": tensor for part, held in exported.parts.items() for name, tensor in held.items()}
        # The very bytes that were checked, not the file once more.
        found = super().from_pretrained(None, *arguments, config=config, state_dict=state, **options)
        model = found[0] if isinstance(found, tuple) else found
        for buffer in model.buffers():  # position tables, which transformers leaves in float32 whatever the weights are
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(model.dtype)
        return found

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:  # type: ignore[override]
        """As transformers does it; what is written is an exported folder again, with its own checksum.

        A model that ``max_shard_size`` cuts into several files is none, and only transformers reads it.
        """
        super().save_pretrained(save_directory, **options)
        folder = Path(save_directory)
        if (folder / WEIGHTS).is_file():
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            content = (folder / WEIGHTS).read_bytes()
            config |= {"weights_bytes": len(content), "weights_sha256": hashlib.sha256(content).hexdigest()}
            write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def write_code(folder: Path) -> str:
    """Make an exported folder load by ``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)``; return a line about it.

    Writes ``modeling_mavil.py``, six lines that import this module, and names it in ``config.json``.
    """
    write_text(folder / f"{CODE}.py", SOURCE)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": f"{CODE}.MavilConfig", "AutoModel": f"{CODE}.MavilModel"}
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")
    return f"{folder / CODE}.py: transformers, AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)"


AutoConfig.register(MavilConfig.model_type, MavilConfig, exist_ok=True)
AutoModel.register(MavilConfig, MavilModel, exist_ok=True)
