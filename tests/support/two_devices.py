"""A second device on any machine: tensors that say they are there, and refuse to meet those that are elsewhere.

Their numbers lie in ordinary memory. What torch does between devices is done, or refused, as it is between GPUs.
"""

from __future__ import annotations

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

HERE, THERE = torch.device("cpu"), torch.device("privateuseone:0")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Backend(_DummyBackendModule):
    """What torch asks of a device that it does not bring."""

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


_setup_privateuseone_for_python_backend(backend_module=Backend())


class There(torch.Tensor):
    """A tensor on the second device."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=THERE,
            requires_grad=False,
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"There({self.held!r})"

    def tolist(self):
        return self.held.tolist()

    def numpy(self):
        raise TypeError("a tensor of another device is none of numpy's; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func, kinds, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    places = {isinstance(each, There) for each in tensors if each.dim() or isinstance(each, There)}
    if len(places) > 1 and func not in COPIES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} found two")
    if func is torch.ops.aten._conj.default:  # a mark on the tensor, which is not looked at down here
        func = torch.ops.aten.conj_physical.default
    asked = kwargs.get("device")
    there = asked == THERE if asked is not None else isinstance(args[0], There) if func in COPIES else True in places
    if asked is not None:
        kwargs = kwargs | {"device": HERE}
    plain = tree_map(lambda each: each.held if isinstance(each, There) else each, (args, kwargs))
    result = func(*plain[0], **plain[1])
    originals = {id(each.held): each for each in tensors if isinstance(each, There)}

    def placed(each):
        if not isinstance(each, torch.Tensor) or not there:
            return each
        return originals[id(each)] if id(each) in originals else There(each)

    return tree_map(placed, result)


class TwoDevices(TorchDispatchMode):
    """Within it there is a second device."""

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) is made here, and then moved
        return super().__enter__()

    def __exit__(self, *exception):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def spread(model, there):
    """Have parts of a model on the second device, by path, with the hooks that `accelerate.dispatch_model` sets."""
    base, skipped = model.base_model, ("cache", "past_key_values")
    parts = [*base.children(), *(child for child in model.children() if child is not base)]
    parts = [each for part in parts for each in (part if isinstance(part, torch.nn.ModuleList) else [part])]
    names = {module: path for path, module in model.named_modules()}
    for part in parts:
        is_there = names[part] in there
        for module in part.modules() if is_there else ():
            for name, weight in list(module.named_parameters(recurse=False)):
                module._parameters[name] = torch.nn.Parameter(There(weight.data), requires_grad=False)
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = There(buffer)
        add_hook_to_module(part, AlignDevicesHook(execution_device=THERE if is_there else HERE, skip_keys=skipped))
    add_hook_to_module(model, AlignDevicesHook(execution_device=HERE, io_same_device=True, skip_keys=skipped))
    return model
