"""The one part of superpod that is compiled: optional, so that an installation without a C compiler does without it."""

from setuptools import Extension, setup

STABLE = "0x030B0000"  # CPython 3.11's stable interface: one build serves it and all that come after it

setup(
    ext_modules=[
        Extension(
            "superpod.interconnect._board",
            ["interconnect/_board.c"],
            define_macros=[("Py_LIMITED_API", STABLE)],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
