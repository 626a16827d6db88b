"""Progressive learning of low-precision networks: experiments one can trust, trace and re-run."""

__version__ = "0.1.0"
