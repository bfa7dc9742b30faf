"""Which documents stay: quality filters, language, deduplication, decontamination."""
