"""What `--help` shows of each command: lines to copy."""

from __future__ import annotations

EXAMPLES = {
    "report": """
        sinkscope report
        sinkscope report path/to/model --text book.txt --segments 8 --length 1024 --out report/
        sinkscope report before/ after/
    """,
    "atlas": """
        sinkscope atlas path/to/one path/to/another --text book.txt --reports reports/
    """,
    "perplexity": """
        sinkscope perplexity path/to/model --text book.txt --cache 512
        sinkscope perplexity path/to/model --policies dense window sinks --sinks 4 --tokens 20000
    """,
    "ablate": """
        sinkscope ablate path/to/model --sinks 0 1 2 4 8 --cache 256 512
        sinkscope ablate path/to/model --kinds first 'line breaks' random --positions both
    """,
    "cost": """
        sinkscope cost path/to/model --cache 1024
    """,
    "intervene": """
        sinkscope intervene path/to/model
        sinkscope intervene path/to/model --evict sinks recent --layers 3 4
        sinkscope intervene path/to/model --dose -inf -4 0 2
    """,
    "sweep": """
        sinkscope sweep grid.yaml --jobs 4 --out sweep/
    """,
    "runs": """
        sinkscope runs sweep/
        sinkscope runs verify sweep/
        sinkscope runs compare sweep/ earlier/
        sinkscope runs export sweep/ table.csv
    """,
    "chat": """
        sinkscope chat path/to/model --sinks 4 --window 1020
    """,
    "lab": """
        sinkscope lab --task bigram --arms softmax softmax1 --seeds 0 1 2
        sinkscope lab --task language --steps 2000 --out lab/
    """,
    "explore": """
        sinkscope explore path/to/model --text chapter.txt --length 384
    """,
    "page": """
        sinkscope page path/to/model --windows 32 --sinks 0 4 --out sinks.html
    """,
    "audit": """
        sinkscope audit llama qwen3 --out audit/
    """,
}
FIRST = """
        sinkscope report                                  the demo model on the demo text
        sinkscope report path/to/model --text book.txt    a model and a text of your own
        sinkscope COMMAND --help                          options and examples of a command
"""


def shown(lines: str) -> str:
    """The lines under a heading, for the end of a page of help; the backspace keeps them apart."""
    return "\b\nExamples:\n" + "\n".join(f"  {line.strip()}" for line in lines.strip().splitlines())
