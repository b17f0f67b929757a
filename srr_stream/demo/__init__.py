"""The demo: a real stream through an embedded broker, watched live, measured against its labels at the end."""
