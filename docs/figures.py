"""Puts measured figures into both READMEs, between their marks.

python docs/figures.py runs/demo/demo.json      what `make demo` measured, and docs/benchmarks.md if it is there
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraloom.cli.side_by_side import table_cells

ROOT = Path(__file__).parents[1]
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh.md"}

DEMO = {
    "en": {
        "head": "| | accuracy (95 %) | macro-F1 (95 %) | trained | share | on disk | time | peak memory |",
        "base": "base, untrained head",
        "lora": "LoRA",
        "full": "full fine-tuning",
    },
    "zh": {
        "head": "| | 准确率（95 %） | 宏平均 F1（95 %） | 训练参数 | 占比 | 磁盘 | 时间 | 内存峰值 |",
        "base": "基座，未训练的头",
        "lora": "LoRA",
        "full": "全量微调",
    },
}
BENCH = {
    "en": {"head": "| measure | found | at most |"},
    "zh": {
        "head": "| 项目 | 实测 | 上限 |",
        "whole job": "整个任务",
        "training step / frozen floor": "训练一步 / 冻结基座的下限",
        "forward / base": "前向 / 基座",
        "switching": "切换",
        "peak memory above the base": "超出基座的内存峰值",
        "start-up": "启动",
        "gradients": "梯度相对误差",
        "one adapter": "一个适配器",
        "three weighted": "三个加权混合",
        "eight routed per sample": "八个，逐样本路由",
        "change the active adapter": "更换生效的适配器",
        "change a weight": "改变权重",
        "sites": "处",
        "time against": "用时，对比",
        "points of accuracy below": "准确率低几个百分点，对比",
        "against": "对比",
        "above import torch": "比 import torch 多用",
        "(and use attach)": "（并使用 attach）",
        "fused": "融合实现",
        "plain": "朴素实现",
        "tokens": "个词元",
    },
}

RESULTS = {
    "en": {"head": "| task, and what it was adapted to | score | base | LoRA | full fine-tuning |"},
    "zh": {
        "head": "| 任务与适配目标 | 指标 | 基座 | LoRA | 全量微调 |",
        "Text classification: 77 intents of bank customers": "文本分类：银行客户的 77 种意图",
        "Text classification: tweets, positive or negative": "文本分类：推文的褒贬",
        "Text classification: short English reviews": "文本分类：英文短评",
        "Language model: from Austen's prose to Shakespeare's verse": "语言模型：从奥斯汀的散文到莎士比亚的诗剧",
        "Translation: English to Dutch, from short sentences to longer ones": "翻译：英语到荷兰语，由短句到长句",
        "Image classification: ten digits of sign language, from a base that knows five": "图像分类：手语数字",
        "Object detection: blood cells, for a model that knows drawn shapes": "目标检测：由画出的图形到血细胞",
        "Speech recognition: a fourth speaker, for a model that heard three": "语音识别：由三位说话人到第四位",
        "Speech synthesis: from spelling in tones to a reader's voice": "语音合成：由音调拼写到一位朗读者",
        "accuracy": "准确率",
        "perplexity": "困惑度",
    },
}


def demo_table(result: Mapping[str, Any], language: str) -> str:
    """The demo's own table, from its demo.json."""
    words = DEMO[language]
    rows = [f"| {' | '.join([words[row['name']], *table_cells(row)])} |" for row in result["rows"]]
    return "\n".join([words["head"], "|---" * 8 + "|", *rows])


def bench_table(report: str, language: str) -> str:
    """The rows of docs/benchmarks.md that have a bound."""
    words = BENCH[language]
    rows = []
    for line in report.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 5 and re.match(r"\d", cells[3]):
            part, name, found, most, _ = cells
            rows.append(f"| {said(part, words)}: {said(name, words)} | {found} | {most} |")
    return "\n".join([words["head"], "|---" * 3 + "|", *rows])


def results_table(report: str, language: str) -> str:
    """Base · LoRA · full of every part of docs/results.md, by its first score."""
    words = RESULTS[language]
    rows = []
    for part in re.split(r"^## ", report, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        by_name = {row[0].partition(",")[0]: row[1] for row in cells[2:]}
        three = " | ".join(by_name[name] for name in ("base", "LoRA", "full fine-tuning"))
        rows.append(f"| {said(lines[0], words)} | {said(cells[0][1], words)} | {three} |")
    return "\n".join([words["head"], "|---" * 5 + "|", *rows])


def said(text: str, words: Mapping[str, str]) -> str:
    """A text with every phrase that has a translation put into it, the longest first."""
    for phrase in sorted(words.keys() - {"head"}, key=len, reverse=True):
        text = text.replace(phrase, words[phrase])
    return text


def put(path: Path, mark: str, content: str) -> None:
    """Replace what stands between the marks of a file."""
    begin, end = f"<!-- {mark} -->\n", f"\n<!-- /{mark} -->"
    before, found, rest = path.read_text("utf-8").partition(begin)
    if not found or end not in f"\n{rest}":
        raise ValueError(f"{path.name} lacks the marks of {mark!r}, each on a line of its own")
    path.write_text(before + begin + content + end + f"\n{rest}".partition(end)[2], encoding="utf-8")


def main() -> None:
    """Fill what there are measurements for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", nargs="?", type=Path, help="demo.json of a demo's folder")
    demo, report = parser.parse_args().demo, ROOT / "docs" / "benchmarks.md"
    results = ROOT / "docs" / "results.md"
    for language, readme in READMES.items():
        if demo is not None:
            put(readme, "demo", demo_table(json.loads(demo.read_text("utf-8")), language))
        if report.is_file():
            put(readme, "bench", bench_table(report.read_text("utf-8"), language))
        if results.is_file():
            put(readme, "results", results_table(results.read_text("utf-8"), language))


if __name__ == "__main__":
    main()
