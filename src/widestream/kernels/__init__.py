"""Operations in more than one form: a reference in torch, and what a device can do better.

    exchange.py         a matrix stream's write, norm and read as one operation; `choose_exchange` picks its form
    exchange_cpu.py, exchange_triton.py, exchange_op.py     C++; Triton; as an operator of autograd
    cross_entropy.py    head and loss, some tokens at a time
    attention_cpu.py, gelu_cpu.py       attention's backward pass and GELU in C++
    gate_cpu.py                         gated activations in C++
    norm_cpu.py                         RMSNorm, and rotary positions behind it, in C++
    grouped.py                          products of groups of rows, each with a matrix of its own
    compiled.py         C++ compiled for the machine at hand at first use

Each is imported where it is used, since compilers and Triton may be missing.
"""
