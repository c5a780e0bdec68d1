"""What a comparison reads, holds and writes."""
