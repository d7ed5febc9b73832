"""Where in a computation the first NaN or infinity comes from that reaches its result.

Parts of the detector make such numbers on purpose and mask them (proposals outside of the image). So an origin is
handed on from operator to operator, and counts only if it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OUTSIDE = "the losses"
"""In place of a module's name."""
_UNFILLED = ("aten.empty", "aten.new_empty", "aten.resize")
"""Operators whose output holds whatever the memory held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The operator, or what was given, that brought a kind of number in."""

    order: int
    """By time; 0 for what was given."""
    kind: str
    """NaN or infinity."""
    where: str
    """`aten.log.default in decoder.layers.0`, or the name of what was given."""
    before: Origin | None = None
    """Of a NaN: the infinity that it was made of."""

    def __str__(self) -> str:
        cause = f", of {self.before}" if self.before is not None else ""
        return f"{self.kind} {'from' if self.order else 'in'} {self.where}{cause}"


class _Known:
    """Origins by the memory that tensors look at."""

    def __init__(self) -> None:
        self._views: dict[int, dict[_View, Origin]] = {}

    def of(self, tensor: Tensor) -> Origin | None:
        """That of this view of its memory; of an unknown view the earliest of any, which may have been written into."""
        views = self._views.get(tensor.untyped_storage().data_ptr(), {})
        return views.get(_view(tensor)) or _first(views.values())

    def note(self, tensor: Tensor, origin: Origin) -> None:
        """Replace what was known of this view."""
        self._views.setdefault(tensor.untyped_storage().data_ptr(), {})[_view(tensor)] = origin

    def forget(self, tensor: Tensor) -> None:
        """This view is finite now."""
        self._views.get(tensor.untyped_storage().data_ptr(), {}).pop(_view(tensor), None)


_View = tuple[int, tuple[int, ...], tuple[int, ...]]


def _view(tensor: Tensor) -> _View:
    return int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())


class OriginTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows NaN and infinity through all that runs under it, forward and backward; slow."""

    def __init__(self, model: nn.Module, given: Mapping[str, Tensor]) -> None:
        """
        Args:
            model: names the places.
            given: weights and inputs by name, which may hold such numbers already.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {module: name or type(module).__name__ for name, module in model.named_modules()}
        self._within: list[tuple[str, int]] = []
        self._calls: list[tuple[int, int, str]] = []
        self._order = 0
        self._found = {kind: _Known() for kind in _KINDS}
        self._alive: list[Tensor] = []
        self._hooks: list[Any] = []
        for name, tensor in given.items():
            self._note([tensor], name, order=0, sources=())

    def __enter__(self) -> OriginTracer:
        for module in self._names:
            self._hooks.append(module.register_forward_pre_hook(self._enter))
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def of(self, tensors: Iterable[Tensor]) -> Origin | None:
        """The earliest origin of a number in these tensors that is not finite; NaN goes before infinity."""
        tensors = list(tensors)
        for kind, is_bad in _KINDS.items():
            first = _first(self._origins(kind, (tensor for tensor in tensors if is_bad(tensor))))
            if first is not None:
                return first
        return None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sources = [leaf for leaf in tree_leaves((args, kwargs)) if _is_number(leaf)]
        # Before the operator runs: it may write into its inputs.
        known = [
            origin
            for kind, is_bad in _KINDS.items()
            for origin in self._origins(kind, (tensor for tensor in sources if is_bad(tensor)))
        ]
        output = func(*args, **kwargs)
        if str(func).startswith(_UNFILLED):
            return output
        self._order += 1
        results = [leaf for leaf in tree_leaves(output) if _is_number(leaf)]
        self._note(results, f"{func} in {self._place()}", order=self._order, sources=known)
        return output

    def _origins(self, kind: str, tensors: Iterable[Tensor]) -> list[Origin]:
        found = (self._found[kind].of(tensor) for tensor in tensors)
        return [origin for origin in found if origin is not None]

    def _note(self, tensors: Iterable[Tensor], where: str, *, order: int, sources: Iterable[Origin]) -> None:
        """Remember what these tensors hold: handed on from the sources, or begun here."""
        first = {kind: _first(origin for origin in sources if origin.kind == kind) for kind in _KINDS}
        for tensor in tensors:
            for kind, is_bad in _KINDS.items():
                if not is_bad(tensor):
                    self._found[kind].forget(tensor)
                    continue
                begun = Origin(order=order, kind=kind, where=where)
                if kind == "NaN":
                    begun = replace(begun, before=first["infinity"])
                self._found[kind].note(tensor, first[kind] or begun)
                # Its memory must not be given to another tensor, which would be taken for it.
                self._alive.append(tensor)

    def _place(self) -> str:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return self._within[-1][0] if self._within else OUTSIDE
        # Every node bears the number of its creation, so the module is the innermost call that it falls into.
        number = node._sequence_nr()
        calls = [(end - start, name) for start, end, name in self._calls if start <= number < end]
        return f"{node.name()} of {min(calls)[1] if calls else OUTSIDE}"

    def _enter(self, module: nn.Module, _inputs: Any) -> None:
        self._within.append((self._names[module], torch._C._autograd._get_sequence_nr()))

    def _leave(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        name, start = self._within.pop()
        self._calls.append((start, torch._C._autograd._get_sequence_nr(), name))


def _first(origins: Iterable[Origin]) -> Origin | None:
    return min(origins, key=lambda origin: origin.order, default=None)


def _is_number(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


_KINDS: Mapping[str, Callable[[Tensor], bool]] = {
    "NaN": lambda tensor: bool(tensor.isnan().any()),
    "infinity": lambda tensor: bool(tensor.isinf().any()),
}
