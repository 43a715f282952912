"""Text-to-image: a style or a subject that a diffusion model learns from pictures with captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from loraloom.adapters import AdapterSet
from loraloom.data.captions import TEXT
from loraloom.data.config import DataConfig
from loraloom.data.table import Example, Table, read_table
from loraloom.errors import ConfigError, DataError, FormatError, one_error
from loraloom.tasks.base import (
    NOTHING_ASKED,
    AnswerOptions,
    BaseModel,
    Batch,
    Encoded,
    Feature,
    Splits,
    TaskOptions,
)
from loraloom.tasks.diffusion.base import Diffusion
from loraloom.tasks.diffusion.bench import Bench, Group
from loraloom.tasks.diffusion.buckets import Size, bucket_lengths
from loraloom.tasks.diffusion.captions import IDENTITY, CaptionReader, orders
from loraloom.tasks.diffusion.denoising import Denoised, denoised, said, score_losses, weighted_loss
from loraloom.tasks.diffusion.exports import write_exports
from loraloom.tasks.diffusion.latents import Latent
from loraloom.tasks.diffusion.model import EMBEDDING
from loraloom.tasks.diffusion.options import TextToImageOptions
from loraloom.tasks.diffusion.prior import made_class_pictures, own_class_pictures
from loraloom.tasks.diffusion.sampling import Painted, Sketch, paint, sketch_of
from loraloom.tasks.diffusion.setup import load_parts, make_bench
from loraloom.tasks.splits import HELD_OUT_SPLITS, read_splits


class TextToImage:
    """The task "text-to-image"; see `loraloom.tasks.base.Task` for what each method is for."""

    name: ClassVar[str] = "text-to-image"
    metric: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = None
    asks_for: ClassVar[Literal["text", "file"]] = "text"
    answer_options: ClassVar[frozenset[str]] = frozenset({"seed"})
    shares: ClassVar[frozenset[str]] = frozenset()
    Options: ClassVar[type[TaskOptions]] = TextToImageOptions

    def __init__(self, options: TextToImageOptions | None = None) -> None:
        self.options = options or TextToImageOptions()
        if faults := self.options.faults():
            raise one_error(ConfigError, f"options of {self.name}", faults)
        self._columns: dict[str, str] = {}
        self._size: Size | None = self.options.size
        self._learns = False

    # --- examples

    def read(self, data: DataConfig, *, seed: int) -> Splits:
        """Read pictures and captions; without an evaluation folder, set a part aside by `seed`.

        Raises DataError for anything that cannot be used: broken pictures, pictures without a caption.
        """
        splits, _ = read_splits(
            data,
            lambda source, held_out: self._read(source, data, held_out=held_out),
            seed=seed,
            text_role=TEXT.name,
            ignore=IDENTITY,
        )
        self._check_word([*splits.train, *splits.evaluation])
        self._learns = True
        return splits

    def _read(self, source: str, data: DataConfig, *, held_out: bool) -> Table:
        reader = CaptionReader(self._columns, self.options.instance_prompt, self.options.caption_prefix)
        if held_out:
            return reader.read(source, data, split=data.eval_split, prefer=HELD_OUT_SPLITS)
        table = reader.read(source, data, split=data.split, prefer=("train",))
        self._columns = dict(table.columns)
        return table

    def _check_word(self, examples: Sequence[Example]) -> None:
        """A new word learns from the captions that hold it."""
        word = self.options.train_embedding
        if word is None:
            return
        without = [example for example in examples if word not in example.values[TEXT.name]]
        if without:
            more = f", nor do {len(without) - 1} others" if len(without) > 1 else ""
            raise DataError(
                f"{without[0].place}: its caption {without[0].values[TEXT.name]!r} does not hold the new word {word!r}"
                f"{more}; write it into the captions, or give options.instance_prompt"
            )

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        """Read further captioned pictures; for prediction, a table of prompts."""
        if labelled:
            return self._read(source, data, held_out=True).examples
        role = CaptionReader(self._columns).role
        columns = {name: column for name, column in data.columns.items() if name == TEXT.name}
        table = read_table(
            source,
            (role,),
            columns=columns,
            delimiter=data.delimiter,
            split=data.eval_split,
            prefer_splits=HELD_OUT_SPLITS,
            skip_bad=data.skip_bad,
        )
        return table.examples

    def question(self, given: str, line: int) -> Example:
        """A prompt. Raises DataError for an empty one."""
        if not given.strip():
            raise DataError(f"text:{line}: the prompt is empty; say what is to be seen")
        return Example({TEXT.name: given}, "text", line)

    # --- model

    def load(
        self,
        base: str,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        from_config: bool = False,
        quantize: str | None = None,
    ) -> BaseModel:
        """A diffusers pipeline: a folder, one .safetensors checkpoint, a Hub name, or "scenes".

        With `from_config`, a folder of configurations and tokenizers, whose parts get random weights. Raises
        BaseModelError, ConfigError for what cannot train of this base.
        """
        if quantize is not None:
            raise ConfigError(f"quantize: the layers of a text-to-image base stay as they are; leave out {quantize!r}")
        diffusion, fingerprint, parts = load_parts(base, self.options, dtype=dtype, seed=seed, from_config=from_config)
        self._size = self._size or diffusion.default_size
        bench = make_bench(diffusion, fingerprint, parts, self.options, self._size)
        return BaseModel(
            model=parts,
            processor=bench,
            heads=(EMBEDDING,) if EMBEDDING in parts else (),
            name=diffusion.name,
            source="config" if from_config else diffusion.source,
            fingerprint=fingerprint,
            notes=self._base_notes(bench),
            targets=parts.targets,
            rates=parts.rates,
        )

    def _base_notes(self, bench: Bench) -> list[str]:
        size, objective = bench.latents.size, bench.objective
        shapes = len(bench.latents.buckets)
        told = f" in {shapes} shapes" if shapes > 1 else ""
        return [
            f"{bench.diffusion.kind} base, prediction {objective.prediction}; pictures of about {size[0]} x {size[1]} "
            f"pixels{told}"
        ]

    # --- batches

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        """Latents and text embeddings of every picture, made once and kept on disk; of a prompt, the prompt."""
        bench: Bench = base.processor
        before = bench.latents.made, bench.conditions.made
        lengths = bucket_lengths(bench.latents.buckets)
        features = [self._feature(example, bench, lengths) for example in examples]
        truncated = sum(feature.inputs.get("cut", False) for feature in features)
        notes = self._made_notes(bench, before)
        if self._learns and self.options.class_prompt is not None and not bench.class_pictures:
            notes.append(self._prepare_class(bench))
        if self.options.caption_dropout:
            bench.conditions.prepare("")
        return Encoded(features, truncated, [*notes, *self._size_notes(features, examples)])

    def _feature(self, example: Example, bench: Bench, lengths: Mapping[Size, int]) -> Feature:
        caption = example.values[TEXT.name]
        if "file" not in example.values:
            return Feature({"prompt": caption}, length=1)
        latent = bench.latents.place(example.values, mirrored=self.options.flip)
        captions = orders(caption, self.options.caption_orders)
        cut = [bench.conditions.prepare(text) for text in captions]
        inputs = {"latent": latent, "captions": captions, "cut": any(cut)}
        return Feature(inputs, lengths[latent.fit.bucket], reference=caption)

    def _made_notes(self, bench: Bench, before: tuple[int, int]) -> list[str]:
        pictures, texts = bench.latents.made - before[0], bench.conditions.made - before[1]
        if not pictures and not texts:
            return []
        return [f"{pictures} latents and {texts} text embeddings computed, kept in {bench.latents.cache.folder}"]

    def _size_notes(self, features: Sequence[Feature], examples: Sequence[Example]) -> list[str]:
        """Pictures that are enlarged learn to be blurred, and cut ones lose what stood at their border."""
        fits = [feature.inputs["latent"].fit for feature in features if "latent" in feature.inputs]
        sizes = [example.values for example in examples if "file" in example.values]
        small = [e["file"] for e, how in zip(sizes, fits, strict=True) if e["width"] < how.scaled[0]]
        notes = [f"{len(small)} of {len(fits)} pictures are smaller and are enlarged, e.g. {small[0]}"] if small else []
        cut = [(how.lost, e["file"]) for e, how in zip(sizes, fits, strict=True) if how.lost > 0.25]
        if cut:
            lost, file = max(cut)
            notes.append(f"{len(cut)} pictures lose more than a quarter of their area, e.g. {file} {lost:.0%}")
        return notes

    def _prepare_class(self, bench: Bench) -> str:
        """Have the pictures of the subject's class at hand; returns what to tell of them."""
        options = self.options
        assert options.class_prompt is not None
        if options.class_folder is not None:
            found, told = own_class_pictures(options.class_folder, options.class_pictures), options.class_folder
        else:
            sketch = replace(self._sketch(bench.diffusion), prompt=options.class_prompt)
            folder, base = bench.latents.cache.folder, bench.latents.fingerprint
            found, made = made_class_pictures(
                bench.diffusion, bench.texts, sketch, options.class_pictures, folder, base
            )
            told = f"{made} of them made by the base now" if made else "all of them made before"
        bench.class_pictures = [bench.latents.place(values, mirrored=options.flip) for values in found]
        bench.conditions.prepare(options.class_prompt)
        return f"{len(found)} pictures of the class {options.class_prompt!r} train beside the subject ({told})"

    def collate(self, features: Sequence[Feature], base: BaseModel, *, training: bool = False) -> Batch:
        """The pictures in "groups" of one size each, with latents, noise, times and conditions; "count" of them.

        With `training`, noise and times are drawn, and so are mirroring, the captions' order and dropout, and a
        picture of the class for each of the subject's. Otherwise each picture has its own fixed noise and times.
        """
        bench: Bench = base.processor
        rows = [(feature.inputs["latent"], feature.inputs["captions"], 1.0) for feature in features]
        if training and bench.class_pictures:
            chosen = torch.randint(len(bench.class_pictures), (len(rows),)).tolist()
            caption = [str(self.options.class_prompt)]
            rows += [(bench.class_pictures[number], caption, self.options.prior_weight) for number in chosen]
        groups = [self._group(bench, rows, numbers, training) for numbers in _by_bucket(rows)]
        return {"groups": groups, "count": len(features)}

    def _group(
        self, bench: Bench, rows: Sequence[tuple[Latent, list[str], float]], numbers: list[int], training: bool
    ) -> Group:
        latents, captions, shares = zip(*[rows[number] for number in numbers], strict=True)
        if training:
            keys = _mirrored(latents) if self.options.flip else None
            group = bench.group(latents, self._drawn(captions), keys, spread=self.options.sample_latents)
            group = bench.with_chance(group, self.options.noise_offset)
        else:
            group = bench.group(latents, [choices[0] for choices in captions])
            group = bench.with_fixed(group, [latent.seed for latent in latents], self.options.validation_times)
        weights = bench.objective.weights(group["signal"], group["spread"], self.options.min_snr)
        return {**group, "rows": torch.tensor(numbers), "weights": weights * torch.tensor(shares)}

    def _drawn(self, captions: Sequence[list[str]]) -> list[str]:
        """Captions in one of their orders each, some left empty."""
        if self.options.caption_orders > 1:
            draws = torch.rand(len(captions)).tolist()
            chosen = [choices[int(draw * len(choices))] for choices, draw in zip(captions, draws, strict=True)]
        else:
            chosen = [choices[0] for choices in captions]
        if not self.options.caption_dropout:
            return chosen
        kept = (torch.rand(len(chosen)) >= self.options.caption_dropout).tolist()
        return [text if keep else "" for text, keep in zip(chosen, kept, strict=True)]

    # --- results

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Weighted squared errors, a mean over each picture's latents, summed over the pictures; and how many.

        Pictures of the class add to the sum by their weight, and do not count.
        """
        return weighted_loss(model, batch["groups"]), batch["count"]

    @torch.no_grad()
    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[Denoised]:
        """How well each picture is denoised at the fixed times, unweighted."""
        return denoised(model, batch["groups"])

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the denoiser says at the middle one of the fixed times, a row per picture, padded to the largest."""
        found: dict[int, Tensor] = {}
        for group in batch["groups"]:
            rows = said(model, group, len(group["noise"]) // 2).flatten(1)
            found.update(zip(group["rows"].tolist(), rows, strict=True))
        return nn.utils.rnn.pad_sequence([found[row] for row in range(len(found))], batch_first=True)

    @torch.no_grad()
    def answer(
        self,
        model: nn.Module,
        features: Sequence[Feature],
        base: BaseModel,
        options: AnswerOptions,
        say: Callable[[str], None] | None = None,
    ) -> list[Painted]:
        """A picture for each prompt, by diffusers' own pipeline."""
        bench: Bench = base.processor
        sketch = replace(self._sketch(bench.diffusion), seed=options.seed or 0)
        prompts = [feature.inputs.get("prompt", feature.reference) for feature in features]
        return [paint(bench.diffusion, bench.texts, replace(sketch, prompt=prompt)) for prompt in prompts]

    def draw_samples(self, base: BaseModel, folder: Path, step: int) -> list[Path]:
        """The pictures of `sample_prompts` at a step of training, as PNG in `folder`, which is made if need be."""
        bench: Bench = base.processor
        sketch = replace(self._sketch(bench.diffusion), seed=self.options.sample_seed)
        paths = []
        for number, prompt in enumerate(self.options.sample_prompts, start=1):
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(folder / f"step-{step:06d}-{number}.png")
            paint(bench.diffusion, bench.texts, replace(sketch, prompt=prompt)).save(paths[-1])
        return paths

    def _sketch(self, diffusion: Diffusion) -> Sketch:
        options = self.options
        size = self._size or diffusion.default_size
        return sketch_of(
            diffusion, size, steps=options.sample_steps, guidance=options.guidance, negative=options.negative_prompt
        )

    def write_file(self, prediction: Painted, example: Example, stem: Path, options: AnswerOptions) -> Path:
        """Write the picture as a PNG that says how it was made."""
        path = stem.with_name(f"{stem.name}.png")
        prediction.save(path)
        return path

    def write_exports(self, base: BaseModel, adapters: AdapterSet, name: str, folder: Path, title: str) -> list[str]:
        """pytorch_lora_weights.safetensors for diffusers, on request a kohya file, and a new word's embedding."""
        return write_exports(base.processor, adapters, name, folder, title, kohya="kohya" in self.options.also)[1]

    def score(self, predictions: Sequence[Denoised], references: Sequence[Any]) -> dict[str, float]:
        """The mean loss over pictures, its 95 % interval by the normal distribution, and n.

        Noise and times are the same at every call, so that differences between two models are far more certain
        than the interval says. Raises DataError when there is nothing to score.
        """
        return score_losses([prediction.loss for prediction in predictions])

    def describe(self, prediction: Denoised | Painted, options: AnswerOptions = NOTHING_ASKED) -> Mapping[str, Any]:
        """Of a picture that was made, its seed, size and steps; of one that was denoised, its loss."""
        if isinstance(prediction, Denoised):
            return {"loss": prediction.loss, "by_time": list(prediction.by_time)}
        sketch = prediction.sketch
        width, height = sketch.size
        return {"seed": sketch.seed, "size": f"{width}x{height}", "steps": sketch.steps, "guidance": sketch.guidance}

    def state(self) -> dict[str, Any]:
        """The columns that training read, and the size of its pictures."""
        return {"columns": dict(self._columns), "size": None if self._size is None else list(self._size)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave. Raises FormatError when its size is none."""
        size = state.get("size")
        if size is not None and not (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)):
            raise FormatError(f"task state: 'size' is no width and height but {size!r}")
        self._size = None if size is None else (size[0], size[1])
        self._columns = dict(state.get("columns") or {})


def _by_bucket(rows: Sequence[tuple[Latent, list[str], float]]) -> list[list[int]]:
    """Which rows are of one size, in the order in which the sizes come."""
    found: dict[Size, list[int]] = {}
    for number, (latent, _, _) in enumerate(rows):
        found.setdefault(latent.fit.bucket, []).append(number)
    return list(found.values())


def _mirrored(latents: Sequence[Latent]) -> list[str]:
    """A key for each picture, that of the mirrored one for half of them by chance."""
    flips = (torch.rand(len(latents)) < 0.5).tolist()
    return [
        latent.mirrored if flip and latent.mirrored else latent.key for latent, flip in zip(latents, flips, strict=True)
    ]
