"""superpod: a software SuperPoD. Every process stands in for one accelerator card."""
