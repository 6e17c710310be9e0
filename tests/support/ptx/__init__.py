"""Executes the compiler's own PTX of the CUDA kernels on the CPU.

parsing: PTX text to statements. translation: statements to C++, one for each instruction. build: the C++ to a
library that `HostDriver` launches. ptx.h, machine.cpp and race_shadow.h are what the C++ runs on.
"""
