"""The images that the tests on a cluster need, built on this machine and kept between runs: those of `RECIPES`.

    for image in images.build():
        image.reference, image.archive

Each has a key, a hash of all it is made from, which is its tag too: what is built already is not built again, and a
cluster never mistakes an old one for a new one. buildah keeps the layers, so that a change of a Python source builds
only the last one. The base is a small Debian by debootstrap, since there may be no registry to ask; where a Docker
engine answers, it builds, on the Dockerfiles' own base.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tarmill-images"
SUITE = "bookworm"
NOT_NEEDED = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
)
# How this machine's pip reaches its index and whom it trusts; lent to a build, and no part of the image.
SETTINGS_OF_PIP = ("index-url", "extra-index-url", "trusted-host", "proxy", "cert", "timeout", "default-timeout")


@dataclass(frozen=True)
class Recipe:
    """What an image is made of: its Dockerfile, the folder that this copies from, the Debian packages of its base."""

    dockerfile: str
    context: str
    packages: tuple[str, ...]
    sources: tuple[str, ...]
    """Files and folders, from the repository's root."""


_PYTHON = ("python3", "python3-venv", "ca-certificates")
_CODE = ("runner/tarmill", "operator/tarmill_operator", "pyproject.toml", "README.md", "LICENSE", "runner/build.lock")
RECIPES = {
    "runner": Recipe("runner/Dockerfile", ".", _PYTHON, (*_CODE, "runner/requirements.lock")),
    "operator": Recipe("operator/Dockerfile", ".", _PYTHON, (*_CODE, "operator/requirements.lock")),
    "dask-operator": Recipe(
        "tests/e2e/dask-operator/Dockerfile", "tests/e2e/dask-operator", _PYTHON, ("tests/e2e/dask-operator",)
    ),
    "store": Recipe("nginx/Dockerfile", "nginx", ("nginx-light",), ("nginx/conf", "nginx/start.sh")),
}
NAMES = tuple(RECIPES)


@dataclass(frozen=True)
class Image:
    """An image by the name that manifests use, and where it lies."""

    name: str
    reference: str
    archive: Path


@cache
def docker_answers() -> bool:
    """Whether a Docker engine is here to be used."""
    if shutil.which("docker") is None:
        return False
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(asked, capture_output=True, stdin=subprocess.DEVNULL, timeout=30).returncode == 0


def build(names: Iterable[str] = NAMES) -> list[Image]:
    """Build what the cache lacks, and say where each image lies."""
    with _locked():
        return [_archive(name) for name in names]


@contextmanager
def _locked() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def named(name: str) -> Image:
    """What `build` makes of the sources as they are, whether it is there or not."""
    recipe = RECIPES[name]
    base = "" if docker_answers() else _base_key(recipe.packages)
    key = _key([base], [ROOT / ".dockerignore", ROOT / recipe.dockerfile, *_sources(recipe)])
    return Image(name, f"localhost/tarmill-{name}:{key}", CACHE / f"{name}-{key}.tar")


def _archive(name: str) -> Image:
    image = named(name)
    if image.archive.exists():
        image.archive.touch()
        return image
    began_s = time.monotonic()
    part = image.archive.with_suffix(".part")
    part.unlink(missing_ok=True)
    if docker_answers():
        _run("docker", "build", "--quiet", *_options(image))
        _run("docker", "save", "--output", str(part), image.reference)
    else:
        _build_by_buildah(image, part)
    part.rename(image.archive)
    _drop_old(name)
    _say(f"{image.reference} in {time.monotonic() - began_s:.0f} s, {image.archive.stat().st_size / 1e6:.0f} MB")
    return image


def _options(image: Image) -> list[str]:
    recipe = RECIPES[image.name]
    return ["--file", recipe.dockerfile, "--tag", image.reference, recipe.context]


def _build_by_buildah(image: Image, archive: Path) -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, ("buildah", "debootstrap"))):
        raise RuntimeError("images need a Docker engine, or root with buildah and debootstrap: make kube-images")
    base = f"--build-arg=BASE_IMAGE={_base(RECIPES[image.name].packages)}"
    _buildah("bud", "--quiet", "--layers", base, *_lent_to_pip(), *_options(image))
    # Not as an OCI archive, whose layers would be compressed: that takes longer than the build.
    _buildah("push", "--quiet", image.reference, f"docker-archive:{archive}:{image.reference}")


def _lent_to_pip() -> list[str]:
    listed = _run(sys.executable, "-m", "pip", "config", "list").decode().splitlines()
    listed.sort(key=lambda line: line.startswith(":env:"))  # what the environment says counts more than files
    settings = {key.rpartition(".")[2]: ast.literal_eval(value) for key, _, value in (x.partition("=") for x in listed)}
    kept = {name: value for name, value in settings.items() if name in SETTINGS_OF_PIP}
    lines = [f"{name} = {value}".replace("\n", "\n    ") for name, value in kept.items()]
    file = CACHE / "pip.conf"
    file.touch(mode=0o600)
    file.write_text("\n".join(["[global]", *lines, ""]))
    authorities = Path("/etc/ssl/certs")
    volumes = [f"--volume={file}:/etc/pip.conf:ro", f"--volume={authorities}:{authorities}:ro"]
    certificate = Path(kept.get("cert", authorities))
    if not certificate.is_relative_to(authorities):
        volumes.append(f"--volume={certificate}:{certificate}:ro")
    return volumes


def _base(packages: tuple[str, ...]) -> str:
    reference = f"localhost/tarmill-base:{_base_key(packages)}"
    if reference.encode() in _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        return reference
    began_s = time.monotonic()
    root = CACHE / "base"
    shutil.rmtree(root, ignore_errors=True)
    _run("debootstrap", "--variant=minbase", f"--include={','.join(packages)}", SUITE, str(root), *_mirror())
    for folder in NOT_NEEDED:
        shutil.rmtree(root / folder)
        (root / folder).mkdir()
    container = _buildah("from", "scratch").decode().strip()
    _buildah("add", "--quiet", container, str(root), "/")
    _buildah("commit", "--quiet", "--rm", container, reference)
    shutil.rmtree(root)
    _say(f"{reference} in {time.monotonic() - began_s:.0f} s")
    return reference


def _mirror() -> list[str]:
    """Where this machine's apt finds Debian; debootstrap's own default when it is no Debian."""
    if shutil.which("apt-get") is None:
        return []
    lines = _run("apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(COMPONENT) $(CODENAME)").decode()
    rows = (line.split(" ") for line in lines.splitlines())
    return [row[0] for row in rows if row[1:3] == ["Debian", "main"] and "-" not in row[3]][:1]


def _drop_old(name: str, kept: int = 2) -> None:
    archives = sorted(CACHE.glob(f"{name}-*.tar"), key=lambda path: path.stat().st_mtime)
    for archive in archives[:-kept]:
        archive.unlink()
        reference = f"localhost/tarmill-{name}:{archive.stem.rpartition('-')[2]}"
        if not docker_answers():
            # The layers that it shares with newer ones stay.
            subprocess.run([*_buildah_command(), "rmi", reference], capture_output=True)


# Keys


def _sources(recipe: Recipe) -> list[Path]:
    found: list[Path] = []
    for path in (ROOT / name for name in recipe.sources):
        inner = path.rglob("*") if path.is_dir() else [path]
        found += sorted(file for file in inner if file.is_file() and file.suffix != ".pyc")
    return found


def _base_key(packages: tuple[str, ...]) -> str:
    return _key([SUITE, *packages, *NOT_NEEDED], [])


def _key(words: Iterable[str], files: Iterable[Path]) -> str:
    digest = hashlib.sha256(repr(list(words)).encode())
    for path in files:
        body = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(body)}\n".encode() + body)
    return digest.hexdigest()[:12]


# Programs


@cache
def _buildah_command() -> tuple[str, ...]:
    """With a store of its own, and the kernel's overlays where it can; without them each layer is a whole copy."""
    storage = CACHE / "storage"
    command = ("buildah", f"--root={storage}", f"--runroot={CACHE / 'runroot'}")
    overlay = (*command, "--storage-driver=overlay")
    if not (storage / "vfs").exists() and subprocess.run([*overlay, "images"], capture_output=True).returncode == 0:
        return overlay
    return (*command, "--storage-driver=vfs")


def _buildah(*arguments: str) -> bytes:
    return _run(*_buildah_command(), *arguments)


def _run(*command: str) -> bytes:
    """Run a program quietly; when it fails, all it said is in the error."""
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, cwd=ROOT)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace")[-6000:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done.stdout


def _say(text: str) -> None:
    print(f"images: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    for built in build(sys.argv[1:] or NAMES):
        print(built.archive)
