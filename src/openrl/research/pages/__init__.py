"""Studies as pages for a browser."""

from openrl.research.pages.app import create_study_app

__all__ = ["create_study_app"]
