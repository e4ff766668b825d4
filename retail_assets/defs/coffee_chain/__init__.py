"""The coffee chain: outlets, products, customers and sales, delivered as dated drops."""
