"""Build of pcdet_ext: a Python package and its native library, a plain C ABI that knows nothing of torch.

Names, versions and requirements are in pyproject.toml. The folder `configs/` is installed as `pcdet_ext.configs`.

`ops/<op>/*_cpu.cpp` becomes `pcdet_ext/ops/libpcdet_ext_cpu.so` (g++, OpenMP) and, where nvcc is found,
`ops/<op>/*_cuda.cu` becomes `pcdet_ext/ops/libpcdet_ext_cuda.so` (static cudart). A missing compiler is no error:
the package then runs on its PyTorch references. Environment: PCDET_EXT_CUDA=0 skips the CUDA part, PCDET_EXT_ARCHS
("80;90") replaces the list of architectures, PCDET_EXT_REQUIRE_NATIVE=1 makes a failed build an error, CXX and NVCC
name the compilers.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # older setuptools leave it to the wheel package
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).parent.resolve()
SOURCES = ROOT / "ops"
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-Wall", "-Wextra", "-fvisibility=hidden"]
CXX_FLAGS += ["-Wno-psabi"]  # functions of vectors are all inlined
CXX_FLAGS += ["-ffp-contract=off", "-fno-trapping-math"]  # rounds as written; conditions become vectors
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "-cudart=static", "--expt-relaxed-constexpr"]
WANTED_ARCHS = ["80", "90", "100", "120"]


def cuda_archs(nvcc: str) -> list[str]:
    """The wanted architectures that this nvcc knows."""
    if os.environ.get("PCDET_EXT_ARCHS"):
        return os.environ["PCDET_EXT_ARCHS"].split(";")
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"sm_(\d+)\b", listed))
    return [arch for arch in WANTED_ARCHS if arch in known]


def arch_flags(archs: list[str]) -> list[str]:
    """Machine code for each architecture, and PTX of the newest for those to come."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


def with_headers(source: Path) -> list[Path]:
    """A source and our headers that it includes, directly or through others."""
    found = [source]
    for path in found:
        for name in re.findall(r'^#include "(.+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            candidates = (path.parent / name, SOURCES / name)
            found += [c for c in candidates if c.exists() and c not in found][:1]
    return found


def compile_object(command: list[str], source: Path) -> Path:
    """Compile one file, or take the object of an earlier build with the same inputs."""
    digest = hashlib.sha256(" ".join([*command, str(source)]).encode())
    for path in with_headers(source):
        digest.update(path.read_bytes())
    target = ROOT / "build" / "native" / f"{source.stem}-{digest.hexdigest()[:16]}.o"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.part.o")
        subprocess.run([*command, f"-I{SOURCES}", "-c", str(source), "-o", str(partial)], check=True)
        partial.replace(target)
    return target


def sources_digest(ending: str) -> str:
    """What tells a library from one that was built from other sources; `pcdet_ext.ops._native` knows the same rule."""
    digest = hashlib.sha256()
    for path in sorted(p for p in SOURCES.rglob("*") if p.suffix in (".h", ending)):
        digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def digest_source(ending: str) -> Path:
    """A source file with a function that returns the digest of the sources."""
    function = 'extern "C" __attribute__((visibility("default"))) const char* pcdet_sources()'
    code = f'{function} {{ return "{sources_digest(ending)}"; }}\n'
    path = ROOT / "build" / "native" / f"pcdet_sources{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")
    return path


def build_library(compiler: str, flags: list[str], sources: list[Path], target: Path) -> None:
    """Compile the sources side by side and link them into one shared library."""
    command = [compiler, *flags]
    sources = [*sources, digest_source(sources[0].suffix)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: compile_object(command, source), sources))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    subprocess.run([*command, "-shared", *map(str, objects), "-o", str(partial)], check=True)
    partial.replace(target)


class BuildNative(build_ext):
    """Compile the native libraries with g++ and nvcc instead of as Python modules."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        sources = [ROOT / s for s in ext.sources]
        target = Path(self.get_ext_fullpath(ext.name))
        is_cuda = ext.name.endswith("_cuda")
        variable, default = ("NVCC", "nvcc") if is_cuda else ("CXX", "g++")
        compiler = shutil.which(os.environ.get(variable, default))
        if is_cuda and os.environ.get("PCDET_EXT_CUDA") == "0":
            return
        if compiler is None:
            self.unavailable(ext.name, f"no {default} found", required=not is_cuda)
            return
        try:
            flags = [*NVCC_FLAGS, *arch_flags(cuda_archs(compiler))] if is_cuda else CXX_FLAGS
            build_library(compiler, flags, sources, target)
        except subprocess.CalledProcessError as error:
            self.unavailable(ext.name, str(error), required=True)

    def unavailable(self, name: str, why: str, required: bool) -> None:
        """Say that a part is not built; an error only where the environment asks for it."""
        if required and os.environ.get("PCDET_EXT_REQUIRE_NATIVE") == "1":
            raise RuntimeError(f"{name}: {why}")
        print(f"pcdet_ext: {name} is not built ({why}); PyTorch references are used instead", file=sys.stderr)


class BuildPython(build_py):
    """Copy the modules into a folder without those of an earlier build, some of which may be gone by now."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "pcdet_ext", ignore_errors=True)
        super().run()


class Wheel(bdist_wheel):
    """One wheel for every Python 3: the native part has a C ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def sources(pattern: str) -> list[str]:
    """Paths below the root, sorted, so that builds repeat."""
    return sorted(str(p.relative_to(ROOT)) for p in SOURCES.rglob(pattern))


def native_extensions() -> list[Extension]:
    """The CPU and the CUDA library, where there are sources for them."""
    parts = {"pcdet_ext.ops.libpcdet_ext_cpu": "*_cpu.cpp", "pcdet_ext.ops.libpcdet_ext_cuda": "*_cuda.cu"}
    return [Extension(name, sources(pattern), optional=True) for name, pattern in parts.items() if sources(pattern)]


setup(
    packages=[*find_packages(include=["pcdet_ext", "pcdet_ext.*"]), "pcdet_ext.configs"],
    package_dir={"pcdet_ext.configs": "configs"},
    package_data={
        "pcdet_ext": ["py.typed", "weights/**/*.ckpt"],
        "pcdet_ext.visualization": ["viewer/*"],
        "pcdet_ext.configs": ["**/*.yaml"],
    },
    ext_modules=native_extensions(),
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative, "bdist_wheel": Wheel},
)
