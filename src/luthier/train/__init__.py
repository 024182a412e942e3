"""The one loop, and what it needs. Knows neither methods nor data nor recipes: a module and an iterator."""
