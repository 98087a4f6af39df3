"""What models learn and are judged by: rows, images and vectors from files, the Hub or built in."""
