"""The page of `controlkit ui` and its HTTP API: one program, three fronts, all of which speak recipes.

`jobs.py` runs recipes one after the other, watched by `sampling.py`; `places.py` is the one resolver of
paths; `looking.py` shows what a module will see; `python.py` writes a recipe as code. On these stand `api.py`
(JSON over HTTP), `webui.py` (the routes of sd-webui-controlnet) and `page.py` (Gradio). `guard.py` stands
before all of it, `serving.py` starts it.
"""
