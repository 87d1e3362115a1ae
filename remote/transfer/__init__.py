"""Moving content: downloads and uploads, their limits, and how long a read asks again."""
