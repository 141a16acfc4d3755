"""Files behind URLs (``s3://``, ``gs://``, whatever fsspec speaks): what a URL may be, what lies there, local copies.

This is the one place that knows what a URL means. Data behind one is copied here before a modality opens it
(``data.reads_urls``), so no plugin has to know of URLs. The token cache reads and writes through ``RemoteFolder``.
"""
