"""Networks, one file each; no algorithm in sight."""
