"""What you run: one file per job, each with `main()`. The only package that knows the other three."""
