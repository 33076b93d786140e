"""The default plugins, one file each. A file dropped in here is found at once; installed, this is `nanovlm_plugins`."""
