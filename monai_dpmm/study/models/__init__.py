"""Models of normality that the mixture is compared with."""
