"""A local web page for search: drop a sound or a film, watch what comes back.

:mod:`~mavil.serve.app` puts it together, :mod:`~mavil.serve.guard` refuses other web sites, :mod:`~mavil.serve.uploads` takes in
queries, :mod:`~mavil.serve.ranges` sends media, :mod:`~mavil.serve.page` is the page.
"""

from __future__ import annotations
