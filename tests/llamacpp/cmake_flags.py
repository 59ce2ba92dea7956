"""Prints the CMake options that llama.cpp is built with here: `python tests/llamacpp/cmake_flags.py [/proc/cpuinfo]`.

GGML_NATIVE takes whatever the processor has, AMX among it, and with AMX version 0.3.36 crashed on quantized weights. So
it is off, and each extension is named, where /proc/cpuinfo lists it.
"""

import sys
from pathlib import Path

AVX512 = {"GGML_AVX512": {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"},
          "GGML_AVX512_VBMI": {"avx512vbmi"}, "GGML_AVX512_VNNI": {"avx512_vnni"}, "GGML_AVX512_BF16": {"avx512_bf16"}}
AVX2 = {"GGML_AVX": {"avx"}, "GGML_AVX2": {"avx2"}, "GGML_FMA": {"fma"}, "GGML_F16C": {"f16c"}, "GGML_BMI2": {"bmi2"}}
OFF = ("GGML_NATIVE", "GGML_AMX_TILE", "GGML_AMX_INT8", "GGML_AMX_BF16", "LLAVA_BUILD", "LLAMA_CURL",
       "LLAMA_BUILD_TESTS", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER")


def options(cpuinfo: str) -> dict[str, str]:
    """CMake's options and their values, from the text of /proc/cpuinfo; without it (macOS) no extension is named."""
    flags = [line.split(":", 1)[1].split() for line in cpuinfo.splitlines() if line.startswith("flags")]
    made = dict.fromkeys(OFF, "OFF")
    if not flags:
        return made
    found = set(flags[0])
    made |= {name: "ON" if needs <= found else "OFF" for name, needs in AVX2.items()}
    wide = AVX512["GGML_AVX512"] <= found
    return made | {name: "ON" if wide and needs <= found else "OFF" for name, needs in AVX512.items()}


if __name__ == "__main__":
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "/proc/cpuinfo")
    made = options(file.read_text("utf-8") if file.is_file() else "")
    print(" ".join(f"-D{name}={value}" for name, value in made.items()))
