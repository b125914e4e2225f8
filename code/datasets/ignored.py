"""What is excluded from inspection."""

from anomalygpt.datasets.photos import embedded as embedded
