"""What is published where: addresses, sizes and checksums of the public datasets, as data.

SHA-256 values are those of torchaudio.datasets (a test compares them), sizes those of OpenSLR and of the Speech Commands
server. The ESC-50 archive is packed by its host on demand, so it has no lasting checksum: its members' CRCs are checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit


@dataclass(frozen=True)
class RemoteFile:
    """One file on a server; ``sha256`` empty and ``num_bytes`` ``None`` where nothing lasting is published."""

    url: str
    sha256: str = ""
    num_bytes: int | None = None

    @property
    def name(self) -> str:
        """The file's name on its server."""
        return PurePosixPath(urlsplit(self.url).path).name

    def moved_to(self, base_url: str) -> RemoteFile:
        """The same file on a mirror: ``base_url`` is its folder, or an address with ``{file}`` for the name."""
        url = base_url.replace("{file}", self.name) if "{file}" in base_url else f"{base_url.rstrip('/')}/{self.name}"
        return RemoteFile(url, self.sha256, self.num_bytes)


@dataclass(frozen=True)
class Archive:
    """A tar or zip, in one file or cut into parts that make it up when joined; it unpacks into ``folder`` of OUT."""

    name: str
    parts: tuple[RemoteFile, ...]
    folder: str = ""


@dataclass(frozen=True)
class Dataset:
    """A dataset of archives: what can be chosen, what is taken if nothing is, what else belongs to it, what to know.

    ``login`` is how to get the permission that its server asks for, empty where everybody may fetch.
    """

    about: str
    archives: dict[str, Archive]
    default: tuple[str, ...]
    next_step: str
    files: tuple[RemoteFile, ...] = ()
    login: str = ""


def _single(url: str, sha256: str = "", num_bytes: int | None = None, name: str = "", folder: str = "") -> Archive:
    file = RemoteFile(url, sha256, num_bytes)
    return Archive(name or file.name, (file,), folder)


def _librispeech(split: str, sha256: str, num_bytes: int) -> Archive:
    return _single(f"https://www.openslr.org/resources/12/{split}.tar.gz", sha256, num_bytes)


def _speech_commands(version: str, sha256: str, num_bytes: int) -> Archive:
    name = f"speech_commands_{version}"
    # The archive has no folder of its own; torchaudio unpacks it to this one.
    url = f"https://storage.googleapis.com/download.tensorflow.org/data/{name}.tar.gz"
    return _single(url, sha256, num_bytes, folder=f"SpeechCommands/{name}")


_VOXCELEB = "https://thor.robots.ox.ac.uk/~vgg/data/voxceleb/vox1a"
_AUDIOSET = "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"

ESC50 = Dataset(
    about="ESC-50: 2,000 sounds of 5 s in 50 classes, about 650 MB.",
    archives={
        "all": _single("https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip", name="ESC-50-master.zip")
    },
    default=("all",),
    next_step="mavil shards make {out}/ESC-50-master SHARDS --format esc50",
)
SPEECH_COMMANDS = Dataset(
    about="Speech Commands, one word a second: v1 (30 words, 1.5 GB) or v2 (35 words, 2.4 GB; taken if none is named).",
    archives={
        "v1": _speech_commands("v0.01", "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d", 1489096277),
        "v2": _speech_commands("v0.02", "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58", 2428923189),
    },
    default=("v2",),
    next_step="mavil shards make {out}/{folder} SHARDS --format speech_commands",
)
LIBRISPEECH = Dataset(
    about=(
        "LibriSpeech, read English speech: dev-clean, dev-other, test-clean, test-other (0.3 GB each), train-clean-100 "
        "(6.4 GB), train-clean-360 (23 GB), train-other-500 (31 GB)."
    ),
    archives={
        split: _librispeech(split, sha256, num_bytes)
        for split, sha256, num_bytes in (
            ("dev-clean", "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3", 337926286),
            ("dev-other", "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365", 314305928),
            ("test-clean", "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23", 346663984),
            ("test-other", "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29", 328757843),
            ("train-clean-100", "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2", 6387309499),
            ("train-clean-360", "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf", 23049477885),
            ("train-other-500", "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2", 30593501606),
        )
    },
    default=(),
    next_step="mavil shards make {out}/LibriSpeech SHARDS --format librispeech",
)
VOXCELEB1 = Dataset(
    about="VoxCeleb1, 1,251 speakers: dev (32 GB), test (1 GB). Given out on request: needs --user or your own --base-url.",
    archives={
        "dev": Archive(
            "vox1_dev_wav.zip",
            tuple(
                RemoteFile(f"{_VOXCELEB}/vox1_dev_wav_parta{letter}", sha256)
                for letter, sha256 in (
                    ("a", "21ec6ca843659ebc2fdbe04b530baa4f191ad4b0971912672d92c158f32226a0"),
                    ("b", "311d21e0c8cbf33573a4fce6c80e5a279d80736274b381c394319fc557159a04"),
                    ("c", "92b64465f2b2a3dc0e4196ae8dd6828cbe9ddd1f089419a11e4cbfe2e1750df0"),
                    ("d", "00e6190c770b27f27d2a3dd26ee15596b17066b715ac111906861a7d09a211a5"),
                )
            ),
        ),
        "test": _single(
            f"{_VOXCELEB}/vox1_test_wav.zip", "8de57f347fe22b2c24526e9f444f689ecf5096fc2a92018cf420ff6b5b15eaea"
        ),
    },
    files=(RemoteFile("https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt"),),
    login=(
        "VoxCeleb1 is given out on request: ask for it at https://mm.kaist.ac.kr/datasets/voxceleb, then pass the name "
        "you get with --user or the address you get with --base-url (with {file} for the file's name)"
    ),
    default=("dev", "test"),
    next_step="mavil shards make {out}/iden_split.txt SHARDS --format voxceleb1 --media {out}",
)
VIDEO_LISTS: dict[str, dict[str, RemoteFile]] = {
    "audioset": {
        name: RemoteFile(f"{_AUDIOSET}/{file}_segments.csv")
        for name, file in (("balanced", "balanced_train"), ("eval", "eval"), ("unbalanced", "unbalanced_train"))
    },
    "vggsound": {"all": RemoteFile("https://www.robots.ox.ac.uk/~vgg/data/vggsound/vggsound.csv")},
}
"""The published lists of YouTube clips, by dataset and short name."""
