"""From samples to packed rows: conversation -> images -> packing -> loader."""
