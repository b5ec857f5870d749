"""To the Hub and back, without it: a folder stands for what it keeps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError

import mavil
from mavil.export import hub
from mavil.export.folder import read_export, write_export
from mavil.export.hub import HubMixin, fetch_folder, push_folder
from mavil.export.parts import Exported, encoders_of
from mavil.models.build import build_masked
from mavil.recipe import change_recipe
from mavil.structs import UserError
from tests.support.recipes import tiny_recipe


class Kept:
    """The Hub, as far as it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[tuple[str, bool | None]] = []
        self.problem: Exception | None = None

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> None:
        if self.problem is not None:
            raise self.problem
        assert exist_ok
        self.made.append((repo_id, private))

    def upload_folder(self, repo_id: str, folder_path: Path, ignore_patterns: list[str], **options: Any) -> str:
        shutil.copytree(folder_path, self.folder / repo_id, ignore=shutil.ignore_patterns(*ignore_patterns))
        return f"https://hub/{repo_id}/commit/1 {options}"

    def download(self, repo_id: str, revision: str | None, allow_patterns: list[str], **options: Any) -> str:
        if self.problem is not None:
            raise self.problem
        self.asked = (revision, allow_patterns, options)
        return str(self.folder / repo_id)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    found = Kept(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", lambda: found)
    monkeypatch.setattr(hub, "snapshot_download", found.download)
    return found


class Model(HubMixin):
    """What an Embedder is to the mix-in."""

    def __init__(self, recipe: object = None) -> None:
        self.recipe = recipe

    def exported(self) -> Exported:
        torch.manual_seed(0)
        recipe = change_recipe(tiny_recipe(), "audio.mean=-4.0", "audio.std=4.5")
        weights = {name: dict(part.state_dict()) for name, part in build_masked(recipe).parts().items()}
        return Exported(recipe, encoders_of(recipe, weights, "it"), {"run": "tiny"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_export(tmp_path / "out", Model().exported(), "card")


def test_an_export_goes_up_and_comes_down(kept: Kept, folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"another format")
    (folder / "old.pth").write_bytes(b"a pickle")
    (folder / ".hidden").write_text("mine")
    assert push_folder(folder, "owner/name", private=True).startswith("https://hub/owner/name")
    assert kept.made == [("owner/name", True)]
    names = sorted(path.name for path in (kept.folder / "owner" / "name").iterdir())
    assert names == ["README.md", "config.json", "model.onnx", "model.safetensors"]
    back = fetch_folder("owner/name", revision="v1", local_files_only=True)
    assert kept.asked == ("v1", ["model.safetensors", "config.json", "README.md"], {"local_files_only": True})
    assert read_export(back).about == {"run": "tiny"}


def test_what_is_damaged_does_not_go_up(kept: Kept, folder: Path) -> None:
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="bytes instead of"):
        push_folder(folder, "owner/name")
    assert not kept.made


def test_the_mix_in_saves_pushes_and_loads(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(recipe={"a": 1})
    model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")  # what is its own it replaces
    assert read_export(tmp_path / "saved").recipe == model.exported().recipe
    assert model.push_to_hub("owner/pushed", commit_message="first").endswith("{'commit_message': 'first'}")
    assert kept.made == [("owner/pushed", None)]
    assert 'mavil.load("owner/pushed")' in (kept.folder / "owner/pushed/README.md").read_text()
    url = model.save_pretrained(tmp_path / "both", push_to_hub=True, repo_id="owner/both", private=True)
    assert url is not None
    assert kept.made[-1] == ("owner/both", True)
    monkeypatch.setattr(mavil, "load", lambda folder, **options: (read_export(folder).about, options), raising=False)
    assert Model.from_pretrained("owner/both", revision="main", device="cpu") == ({"run": "tiny"}, {"device": "cpu"})
    assert kept.asked[0] == "main"
    assert Model.from_pretrained(tmp_path / "saved") == ({"run": "tiny"}, {})


def test_the_mix_in_never_writes_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="not an export"):
        Model().save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"model_type": "bert"}'


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (LocalEntryNotFoundError("no cache"), "cannot be reached"),
        (HfHubHTTPError.__new__(HfHubHTTPError, "403\n\nForbidden"), "cannot be"),
        (ConnectionError("no\nnetwork"), "no network"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_what_the_hub_says_is_one_line(kept: Kept, folder: Path, problem: Exception, told: str) -> None:
    kept.problem = problem
    for ask in (lambda: push_folder(folder, "owner/name"), lambda: fetch_folder("owner/name")):
        with pytest.raises(UserError, match=told) as error:
            ask()
        assert "\n" not in str(error.value)


def test_a_mistake_of_ours_is_no_answer_of_the_hub(kept: Kept) -> None:
    kept.problem = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        fetch_folder("owner/name")


@pytest.mark.parametrize("name", ["name", "a/b/c", "owner/na me", "", "owner/name@v1"])
def test_an_id_is_owner_and_name(kept: Kept, name: str) -> None:
    with pytest.raises(UserError, match="owner/name"):
        fetch_folder(name)
