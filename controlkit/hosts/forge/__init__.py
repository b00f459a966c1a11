"""Forge: the panel and the API of `controlkit.hosts.webui`, by the means that Forge has for its model.

``scripts/controlkit_webui.py`` at the top of the repository is what Forge imports; see docs/forge.md.

| file | answers |
| --- | --- |
| ``script.py`` | what happens when, while Forge makes a picture? |
| ``model.py`` | what is Forge's model, in the words of controls? |
| ``running.py`` | what is added to a call of the U-Net, and to the picture that it predicts? |
| ``patches.py`` | how do tokens and attention get into its layers? |
| ``again.py`` | how is the conditional half run once more, for a gradient through the U-Net? |
| ``control.py`` | how does Forge hold it: as one more of its ControlNets |
| ``detectors.py`` | which of its own panel's preprocessors are our detectors? |
| ``modules.py`` | which files does its own panel take for ours, and what does it do with them? |
| ``panel.py`` | how do both get into that panel? |

Only the last four, and ``script.py`` by ``control.py``, need Forge to be imported.
"""
