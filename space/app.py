"""A Space that opens what hf_prune made. Nothing foreign runs, no model is loaded, and no rows are fetched."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from opening import LARGEST_UPLOAD, from_hub, from_upload
from view import CSS, HEAD, THEME, refused, shown

EXAMPLES = Path(__file__).parent / "examples"
ABOUT = """
# What was left out, and does it matter?

[hf_prune](https://github.com/hf-prune/hf-prune) finds out which rows of a training set a fine-tuned model needs.
Open a dataset that it pruned, or a file: a report (.html), or a zipped run, selection or pruned dataset (.zip).
Nothing of it is executed, and what you upload is deleted within minutes.
"""


def open_hub(name: str) -> str:
    """The panel for a dataset on the Hub."""
    try:
        return shown(from_hub(name.strip()))
    except (ValueError, OSError) as error:
        return refused(error)


def open_upload(file: str | None) -> str:
    """The panel for a file; empty if there is none any more."""
    try:
        return "" if file is None else shown(from_upload(Path(file)))
    except (ValueError, OSError) as error:
        return refused(error)


def open_example(name: str) -> str:
    """The panel for a file that comes with the app."""
    return shown(from_upload(EXAMPLES / name))


with gr.Blocks(title="hf_prune", analytics_enabled=False, delete_cache=(600, 600)) as app:
    gr.Markdown(ABOUT)
    with gr.Row(equal_height=True):
        with gr.Column():
            repo = gr.Textbox(
                label="A pruned dataset on the Hub",
                placeholder="owner/name",
                info="owner/name@revision:config/, of which revision and config may be left out",
            )
            opened = gr.Button("Open", variant="primary")
        upload = gr.File(
            label="Or a file of yours",
            file_types=[".html", ".zip"],
            height=160,
        )
    with gr.Row():
        report = gr.Button("Example: a report", size="sm")
        run = gr.Button("Example: a recorded run", size="sm")
    panel = gr.HTML(open_example("digits.html"), apply_default_css=False)
    for button, example in ((report, "digits.html"), (run, "trajectory.zip")):
        button.click(lambda name=example: open_example(name), None, panel, api_visibility="private")
    gr.on([opened.click, repo.submit], open_hub, repo, panel, api_visibility="private")
    upload.change(open_upload, upload, panel, api_visibility="private")

if __name__ == "__main__":
    app.launch(
        theme=THEME,
        css=CSS,
        head=HEAD,
        max_file_size=LARGEST_UPLOAD,
        footer_links=[],
        ssr_mode=False,
    )
