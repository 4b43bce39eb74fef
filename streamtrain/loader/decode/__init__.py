"""Images decoded as their batch is gathered."""
