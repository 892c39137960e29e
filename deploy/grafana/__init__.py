"""The Grafana dashboard as data (`panels.py`) and what writes it (`build.py`)."""
