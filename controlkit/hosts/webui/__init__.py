"""AUTOMATIC1111's web UI: controls as units of a panel, and as `alwayson_scripts` of its API.

``scripts/controlkit_webui.py`` at the top of the repository is what the web UI imports; see docs/webui.md.

| file | answers |
| --- | --- |
| ``units.py`` | what did the panel, or a request, ask for? |
| ``pictures.py`` | which picture is that? |
| ``files.py`` | which control files are there, and what is in them? |
| ``encoders.py`` | which image encoders are there, and which one fits? |
| ``controls.py`` | which controls are these units? |
| ``panel.py`` | how does it look? |
| ``preview.py`` | what does the Preview button show? |
| ``script.py`` | what happens when, while the web UI makes a picture? |
| ``model.py`` | what is the web UI's model, in the words of controls? |
| ``calls.py`` | which rows and which step is this call of the U-Net? |
| ``hooks.py`` | how do the sums get into the U-Net? |

Only ``host.py`` imports the web UI, so that the rest can be imported and tested anywhere.
"""
