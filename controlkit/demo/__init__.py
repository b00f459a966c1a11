"""The contact sheet that `controlkit demo` draws."""
