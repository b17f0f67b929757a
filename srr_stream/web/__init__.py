"""The API and the review page: a process of its own beside the scorer, which it never slows down."""
