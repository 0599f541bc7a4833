"""Write the source of a kernel for the Hugging Face kernel hub: `make hub` writes build/hub.

    build.toml, flake.nix   for kernel-builder, which compiles for every torch, CUDA and architecture of the hub
    csrc                    the parts of csrc/ that deformable attention needs
    sources                 one file per object file: definitions and instruction set, then an #include of the source
    torch-ext               the ops' schemas, and the Python package with functions and layers

The sources need no flags of their own, so kernel-builder's choice of architectures stays its own.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CSRC))
from build_backend import CPU_VARIANTS, VARIANTS  # noqa: E402

NAME = "ms-deform-attn"
REPOSITORY = "dino-kernels/ms-deform-attn"
FOLDERS = ("common", "ms_deform_attn")
# Ops are registered in the namespace of a build, so that several builds can be loaded side by side.
NAMESPACE = "#define dino_kernels_native TORCH_EXTENSION_NAME\n"
# DINO_PLAIN_ONLY compiles the portable kernels only.
X86 = "#if defined(__x86_64__) && !defined(DINO_PLAIN_ONLY)\n#define DINO_KERNELS_X86 1\n#endif\n"


def definitions(flags: list[str]) -> str:
    """Return compiler flags as lines of C++; warnings and tuning are left to the builder."""
    defined = [flag[2:].replace("=", " ", 1) for flag in flags if flag.startswith("-D")]
    target = [flag[2:] for flag in flags if flag.startswith("-m") and "=" not in flag]
    pragma = [f'#pragma GCC target("{",".join(target)}")'] if target else []
    return "".join(f"{line}\n" for line in [*(f"#define {each}" for each in defined), *pragma])


def sources() -> dict[str, str]:
    """Return the contents of sources/ by file name."""
    # The instruction sets of x86-64 even where this machine is another.
    variants = {**VARIANTS, "cpu_kernel.cpp": CPU_VARIANTS}
    files = {}
    for path in sorted(path for folder in FOLDERS for path in (CSRC / folder).glob("*.c[pu]*")):
        if path.suffix in (".cpp", ".cu"):
            head = (X86 if path.suffix == ".cpp" else "") + NAMESPACE
            for variant, flags in variants.get(path.name, {"": []}).items():
                body = definitions(flags) + f'#include "{path.relative_to(CSRC)}"\n'
                if variant in ("avx2", "avx512"):
                    body = f"#if defined(DINO_KERNELS_X86)\n{body}#endif\n"
                files["_".join(filter(None, (path.stem, variant))) + path.suffix] = head + body
    return files


def build_toml(root: Path) -> str:
    """Return kernel-builder's description of the sources in `root`."""
    headers = sorted(str(path.relative_to(root)) for path in (root / "csrc").rglob("*") if path.is_file())

    def kernel(backend: str, suffix: str, flags: str) -> str:
        files = [f"sources/{name}" for name in sources() if name.endswith(suffix)] + headers
        listed = "".join(f'  "{file}",\n' for file in files)
        return (
            f'[kernel.ms_deform_attn_{backend}]\nbackend = "{backend}"\ndepends = ["torch"]\n'
            f'include = ["csrc", "csrc/ms_deform_attn"]\n{flags}src = [\n{listed}]\n'
        )

    return "\n".join(
        [
            f'[general]\nname = "{NAME}"\nversion = 1\nedition = 5\nlicense = "Apache-2.0"',
            'backends = ["cpu", "cuda"]\n',
            f'[general.hub]\nrepo-id = "{REPOSITORY}"\n',
            '[torch]\ninclude = ["csrc"]\nsrc = ["torch-ext/torch_binding.cpp"]\n',
            '[torch.stable-abi]\ncpu = "2.10"\ncuda = "2.10"\n',
            kernel("cpu", ".cpp", 'cxx-flags = ["-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math"]\n'),
            kernel("cuda", ".cu", 'cuda-flags = ["-std=c++20", "--expt-relaxed-constexpr"]\n'),
        ]
    )


FLAKE = """{
  description = "Multi-scale deformable attention";

  inputs.kernel-builder.url = "github:huggingface/kernels";

  outputs = { self, kernel-builder }:
    kernel-builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
"""


def export(root: Path) -> None:
    """Write the kernel's source into an empty or new folder."""
    for name in FOLDERS:
        shutil.copytree(CSRC / name, root / "csrc" / name)
    shutil.copytree(CSRC / "hub/torch-ext", root / "torch-ext", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CSRC.parent / "LICENSE", root)
    (root / "sources").mkdir()
    for name, text in sources().items():
        (root / "sources" / name).write_text(text)
    (root / "build.toml").write_text(build_toml(root))
    (root / "flake.nix").write_text(FLAKE)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    export(target)
    print(f"written: {target}")
