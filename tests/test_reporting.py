from monai_dpmm.reporting import _shown


def test_the_table_counts_lesions_at_the_rate_of_the_mask_only():
    detail = {"name": "a", "score": 0.5, "auroc": 0.9, "lesions": 2}
    rates = ("0.01", "0.1")
    detail |= {f"{k}_at_fpr_{r}": 1 for r in rates for k in ("dice", "found", "false_positives")}
    assert list(_shown(detail, 0.1)) == [
        *("auroc", "lesions", "dice_at_fpr_0.01", "dice_at_fpr_0.1"),
        *("found_at_fpr_0.1", "false_positives_at_fpr_0.1"),
    ]
