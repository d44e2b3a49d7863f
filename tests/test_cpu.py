"""The processor's features, out of what real machines say."""

import pytest

from ddcap import cpu
from ddcap.model.precision import fastest_precision

# lines of /proc/cpuinfo: an EPYC of the second generation, a Xeon with AMX, a Core of the 12th, a Graviton 3
EPYC = "model name\t: AMD EPYC 7B12\nflags\t\t: fpu sse2 avx avx2 fma sha_ni\n\nprocessor\t: 1\n"
XEON = (
    "model name\t: Intel(R) Xeon(R) Processor @ 2.60GHz\n"
    "flags\t\t: avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8 avx_vnni\n"
)
CORE = "model name\t: 12th Gen Intel(R) Core(TM) i5\nflags\t\t: avx2 avx_vnni\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp sve i8mm bf16\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "features", "integers"),
    [
        (EPYC, ["AVX2"], None),
        (
            XEON,
            ["AVX2", "AVX-512", "AVX-VNNI", "AVX-512 VNNI", "AVX-512 BF16", "AMX INT8", "AMX BF16"],
            "AMX INT8",
        ),
        (CORE, ["AVX2", "AVX-VNNI"], "AVX-VNNI"),
        (GRAVITON, ["dot products", "I8MM", "BF16"], "I8MM"),
    ],
)
def test_features_and_the_choice_that_follows(text, features, integers, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "CPU_INFORMATION", tmp_path / "cpuinfo")
    assert list(cpu.cpu_features()) == features and cpu.integer_products() == integers
    precision, why = fastest_precision("onnx", "cpu")
    assert precision == "int8"  # on each kind that was measured
    assert (integers or "even without instructions for 8-bit integers") in why


def test_where_there_is_no_linux_numpy_knows(tmp_path, monkeypatch):
    here = set(cpu.cpu_features())
    monkeypatch.setattr(cpu, "CPU_INFORMATION", tmp_path / "gone")
    assert cpu.cpu_name()
    found = set(cpu.cpu_features())
    assert found <= here and ("AVX2" in found) == ("AVX2" in here)
