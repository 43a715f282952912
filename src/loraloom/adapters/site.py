"""A site: one weight of the base model that an adapter updates, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """One update ΔW = scale · B · A, before any tensor exists."""

    module: str
    """Path of the module that owns the weight."""
    parameter: str
    """The weight's name inside the module; dotted where it lies deeper ("out_proj.weight")."""
    kind: str
    """"linear", "conv1d-transposed", "conv1d|2d|3d", "embedding", "matrix" or "experts": see `layers`."""
    shape: Shape
    """Of the base weight."""
    shape_a: Shape
    shape_b: Shape
    rank: int
    alpha: float
    scale: float
    pattern: str
    """The target pattern that chose this site."""
    substituted: bool = False
    """True where the update is added to the weight for each call (raw parameters, attention), because the
    module's own code uses the weight where no layer can be reached; False where it is added to the output."""
    shares: str | None = None
    """Path of the site whose factors this one uses, where their weights are tied."""
    transposed: bool = False
    """True where the shared factors are used the other way round: A is the owner's Bᵀ and B its Aᵀ."""

    @property
    def path(self) -> str:
        """Its name in files and reports: the module, and the parameter where the module has several."""
        return f"{self.module}.{self.parameter}".lstrip(".") if self.substituted else self.module

    @property
    def size(self) -> int:
        """Numbers in both factors; none where they belong to another site."""
        if self.shares:
            return 0
        return _product(self.shape_a) + _product(self.shape_b)

    @property
    def base_size(self) -> int:
        """Numbers in the base weight."""
        return _product(self.shape)


@dataclass(frozen=True)
class Copied:
    """Parameters of one module that an adapter trains as copies of its own: a head, or a bias."""

    module: str
    parameters: tuple[str, ...]
    """Names inside the module, dotted where they lie deeper."""
    shapes: tuple[Shape, ...]
    role: str
    """"head" or "bias"."""
    pattern: str = ""

    @property
    def size(self) -> int:
        return sum(_product(shape) for shape in self.shapes)

    @property
    def paths(self) -> tuple[str, ...]:
        """Full paths of the parameters, in order."""
        return tuple(f"{self.module}.{name}" if self.module else name for name in self.parameters)


def _product(shape: Shape) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
