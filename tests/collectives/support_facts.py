"""What torch's own MPI and NCCL backends do, as torch, MPI and NCCL state it: neither can run in the tests.

Sources; headers and Python files as torch 2.13 ships them, its .cpp files and pages as they were published near it:
  [1] torch, docs/source/distributed.md: the table of functions by backend
  [2] torch, torch/csrc/distributed/c10d/ProcessGroupMPI.hpp and .cpp: functions, dtypes and reductions given to MPI
  [3] torch, torch/csrc/distributed/c10d/NCCLUtils.hpp: the NCCL type of each dtype
  [4] torch, torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp and .cpp: functions and reductions given to NCCL
  [5] torch, torch/distributed/distributed_c10d.py: where complex tensors become pairs of real numbers
  [6] NVIDIA, NCCL User Guide, "Types" and "User Defined Reduction Operators": ncclDataType_t, ncclRedOp_t
  [7] MPI Forum, MPI 4.1, section 6.9.2: predefined reductions and the types they are defined for
"""

from __future__ import annotations

from support_calls import Probe

# [1] and [2]; [1] still says no to reduce_scatter, which [2] has. Coalesced forms throw. No block of calls.
_MPI = {
    *("broadcast", "all_reduce", "reduce", "all_gather", "all_gather_into_tensor", "gather", "scatter"),
    *("reduce_scatter", "reduce_scatter_tensor", "all_to_all", "all_to_all_single", "all_to_all_single (uneven)"),
    *("send, recv", "isend, irecv (tags)", "recv (from anybody)", "batch_isend_irecv", "barrier"),
    *("functional all_reduce", "functional reduce_scatter_tensor", "functional all_gather_tensor"),
    *("functional broadcast", "functional all_to_all_single", "async_op, Work.get_future", "new_group"),
    *("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"),
    *("send_object_list, recv_object_list", "new_subgroups", "init_device_mesh"),
}
_MPI_DTYPES = {"uint8", "int8", "float64", "float32", "int32", "int64", "int16"}  # [2]
_MPI_REDUCTIONS = {"SUM", "PRODUCT", "MIN", "MAX"}  # [2]; [7] has the bits too, but torch does not pass them on

# [1] and [4]: also uneven sizes, as one broadcast or reduce a rank. A recv must say from whom; tags are not kept apart.
_NCCL = _MPI - {"recv (from anybody)", "isend, irecv (tags)"} | {
    *("all_reduce_coalesced", "all_reduce (coalescing block)", "reduce_scatter (uneven)", "all_gather (uneven)"),
    *("reduce_scatter_tensor (coalescing block)", "all_gather_into_tensor (coalescing block)"),
    *("all_gather_coalesced", "split_group", "_get_sequence_number_for_group"),
}
_NCCL_DTYPES = {  # [3] and [6]; float8 from NCCL 2.24 on
    *("int8", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64", "bool"),
    *("float8_e4m3fn", "float8_e5m2"),
}
_NCCL_REDUCTIONS = {"SUM", "AVG", "PRODUCT", "MIN", "MAX", "PREMUL_SUM"}  # [4] and [6]
_NCCL_FACTORS = {"float16", "bfloat16", "float32", "float64"}  # [4]: dtypes of PREMUL_SUM

# [5]: functions that hand complex tensors on as pairs of real numbers, for every backend
_PAIRS = {
    *("all_reduce", "all_reduce_coalesced", "all_reduce (coalescing block)", "broadcast", "scatter", "all_gather"),
    *("all_gather (uneven)", "all_gather_into_tensor", "all_gather_into_tensor (coalescing block)"),
    *("all_gather_coalesced", "all_to_all", "all_to_all_single", "all_to_all_single (uneven)", "send, recv"),
    *("isend, irecv (tags)", "recv (from anybody)", "batch_isend_irecv"),
}
_OF_PAIRS = {"SUM", "AVG", "PREMUL_SUM", ""}


def mpi(probe: Probe) -> bool:
    """Whether torch's MPI backend does it, by what is written about it."""
    operation, dtype, reduction = _as_numbers(probe)
    return operation in _MPI and dtype in {*_MPI_DTYPES, ""} and reduction in {*_MPI_REDUCTIONS, ""}


def nccl(probe: Probe) -> bool:
    """Whether torch's NCCL backend does it, on CUDA tensors, by what is written about it."""
    operation, dtype, reduction = _as_numbers(probe)
    if operation not in _NCCL or dtype not in {*_NCCL_DTYPES, ""} or reduction not in {*_NCCL_REDUCTIONS, ""}:
        return False
    if reduction == "PREMUL_SUM":
        return dtype in _NCCL_FACTORS
    return not (reduction == "AVG" and dtype == "bool")


def _as_numbers(probe: Probe) -> Probe:
    """The probe of real numbers that one of complex numbers becomes, where torch makes it one."""
    operation, dtype, reduction = probe
    if dtype.startswith("complex") and operation in _PAIRS and reduction in _OF_PAIRS:
        return operation, {"complex64": "float32", "complex128": "float64"}[dtype], reduction
    return probe
