"""The parts of superpod that are compiled: optional, so that an installation without a C compiler does without them."""

from glob import glob

from setuptools import Extension, setup

STABLE = "0x030B0000"  # CPython 3.11's stable interface: one build serves it and all that come after it


def compiled(folder: str, name: str) -> Extension:
    """The module of this name in a folder, made from the C file beside it."""
    return Extension(
        f"superpod.{folder}.{name}",
        [f"{folder}/{name}.c"],
        depends=sorted(glob("*/_*.h")),
        include_dirs=["interconnect"],
        define_macros=[("Py_LIMITED_API", STABLE)],
        extra_compile_args=["-O3"],
        py_limited_api=True,
        optional=True,
    )


setup(
    ext_modules=[
        compiled("interconnect", "_board"),
        compiled("interconnect", "_ring"),
        compiled("collectives", "_express"),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
