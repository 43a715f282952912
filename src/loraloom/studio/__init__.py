"""The web page for making pictures, looking at adapters and training: `loraloom studio`.

What the page does lies in modules that know nothing of gradio (desk, easel, rack, gallery, runs, …); those
named `page` and `tab_…` only lay it out.
"""
