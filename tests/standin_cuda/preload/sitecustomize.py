"""Found by every Python that the stand-in starts: gives torch its operators once it is imported."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType


class _AfterTorch(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_install(module: ModuleType) -> None:
            run(module)
            from tests.standin_cuda import operators

            operators.install()

        spec.loader.exec_module = run_and_install  # type: ignore[method-assign]
        return spec


if os.environ.get("STANDIN_CUDA_OPERATORS", "1") == "1":
    sys.meta_path.insert(0, _AfterTorch())
