"""Sending what was changed here: what is due, uploads, batches, answers, retries."""
