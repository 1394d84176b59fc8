"""Every formula of the product. Pure: no clock, no disk, no network; what a function needs comes in as arguments."""
