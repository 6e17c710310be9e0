"""Colors of expression, by tables: matplotlib takes a third of a second to load."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray

INK, MUTED, ALARM = "#1c1c1e", "#6e6e73", "#c0272d"


def color_limits(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the 1st and 99th percentile of values [n] without NaN; (0, 1) if there are none."""
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values.astype(np.float64), [1, 99])
    return float(low), float(high)


def color_spots(values: NDArray[np.floating], limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Return the colors of expression [...] as uint8 [..., 3]; `limits` and what is beyond get the ends."""
    low, high = limits
    share = (values.astype(np.float64) - low) / (high - low if high > low else 1.0)
    return EXPRESSION[np.clip(np.nan_to_num(share) * 256, 0, 255).astype(np.intp)]


def _table(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(base64.urlsafe_b64decode(text), np.uint8).reshape(256, 3)


_MAGMA = _table(
    "AAAEAQAFAQEGAQEIAgEJAgILAgINAwMPAwMSBAQUBQQWBgUYBgUaBwYcCAceCQcgCggiCwkkDAkmDQopDgsrEAstEQwvEg0x"
    "Ew00FA42FQ44Fg87GA89GRA_GhBCHBBEHRFHHhFJIBFLIRFOIhFQJBJTJRJVJxJYKRFaKhFcLBFfLRFhLxFjMRFlMxBnNBBp"
    "NhBrOBBsOQ9uOw9wPQ9xPw9yQA90Qg91RA92RRB3RxB4SRB4ShB5TBF6ThF7TxJ7URJ8UhN8VBN9VhR9VxV-WRV-WhZ-XBZ_"
    "XRd_Xxh_YBiAYhmAZBqAZRqAZxuAaByBahyBax2BbR2Bbh6BcB-Bch-BcyCBdSGBdiGBeCKBeSKCeyOCfCOCfiSCgCWCgSWB"
    "gyaBhCaBhieBiCeBiSiBiymBjCmBjiqBkCqBkSuBkyuAlCyAliyAmC2AmS2Amy5_nC5_ni9_oC9_oTB-ozB-pTF-pjF9qDJ9"
    "qjN9qzN8rTR8rjR7sDV7sjV7szZ6tTZ6tzd5uDd5ujh4vDl4vTl3vzp3wDp2wjt1xDx1xTx0xz1zyD5zyj5yzD9xzUBxz0Bw"
    "0EFv0kJv00Nu1URt1kVs2EVs2UZr20dq3Ehp3klo30po4Exn4k1m405l5E9k5VBk51Jj6FNi6VRi6lZh61dg7Fhg7Vpf7lte"
    "711e8F9e8WBd8mJd8mRc82Vc9Gdc9Glc9Wtc9mxc9m5c93Bc93Jc-HRc-HZc-Xhd-Xld-Xtd-n1e-n9e-oFf-4Nf-4Vg-4dh"
    "_Ilh_Ipi_Ixj_I5k_JBl_ZJm_ZRn_ZZo_Zhp_Zpq_Ztr_p1s_p9t_qFu_qNv_qVx_qdy_qlz_qp0_qx2_q53_rB4_rJ6_rR7"
    "_rZ8_rd-_rl__ruB_r2C_r-E_sGF_sKH_sSI_saK_siM_sqN_syP_s2Q_s-S_tGU_tOV_tWX_teZ_tia_dqc_dye_d6g_eCh"
    "_eKj_eOl_eWn_eep_emq_eus_Oyu_O6w_PCy_PK0_PS2_Pa4_Pe5_Pm7_Pu9_P2_"
)
_VIRIDIS = _table(
    "RAFURAJWRQRXRQVZRgdaRghcRgpdRgteRw1gRw5hRxBjRxFkRxNlSBRnSBZoSBdpSBhqSBpsSBttSBxuSB1vSB9wSCBxSCFz"
    "SCN0SCR1SCV2SCZ3SCh4SCl5Ryp6Ryx6Ry17Ry58Ry99RjB-RjJ-RjN_RjSARTWBRTeBRTiCRDmDRDqDRDuEQz2EQz6FQj-F"
    "QkCGQkGGQUKHQUSHQEWIQEaIP0eIP0iJPkmJPkqJPkyKPU2KPU6KPE-KPFCLO1GLO1KLOlOLOlSMOVWMOVaMOFiMOFmMN1qM"
    "N1uNNlyNNl2NNV6NNV-NNGCNNGGNM2KNM2ONMmSOMmWOMWaOMWeOMWiOMGmOMGqOL2uOL2yOLm2OLm6OLm-OLXCOLXGOLHGO"
    "LHKOLHOOK3SOK3WOKnaOKneOKniOKXmOKXqOKXuOKHyOKH2OJ36OJ3-OJ4COJoGOJoKOJoKOJYOOJYSOJYWOJIaOJIeOI4iO"
    "I4mOI4qNIouNIoyNIo2NIY6NIY-NIZCNIZGMIJKMIJKMIJOMH5SMH5WLH5aLH5eLH5iLH5mKH5qKHpuKHpyJHp2JH56JH5-I"
    "H6CIH6GIH6GHH6KHIKOGIKSGIaWFIaaFIqeFIqiEI6mDJKqDJauCJayCJq2BJ62BKK6AKa9_KrB_LLF-LbJ9LrN8L7R8MbV7"
    "MrZ6NLZ5Nbd5N7h4OLl3Orp2O7t1Pbx0P7xzQL1yQr5xRL9wRsBvSMFuSsFtTMJsTsNrUMRqUsVpVMVoVsZnWMdlWshkXMhj"
    "XsliYMpgY8tfZcteZ8xcac1bbM1abs5YcM9Xc9BWddBUd9FTetFRfNJQf9NOgdNNhNRLhtVJidVIi9ZGjtZFkNdDk9dBldhA"
    "mNg-m9k8ndk7oNo5oto3pds2qNs0qtwyrdwwsN0vst0ttd4ruN4put4ovd8mwN8lwt8jxeAhyOAgyuEfzeEd0OEc0uIb1eIa"
    "2OIZ2uMZ3eMY3-MY4uQY5eQZ5-QZ6uUa7OUb7-Uc8eUd9OYe9uYg-OYh--cj_ecl"
)
_CIVIDIS = _table(
    "ACJOACNPACRRACVTACVUACZWACdYAChZAChbACldACpfACphACtiACxkACxmAC1oAC5qAC5sAC9tADBvADBwADFwADFxATJx"
    "BTNxCDNwDDRwDzVwEjVwFDZwFjdwGDdvGjhvHDlvHjpvIDpvITtuIzxuJDxuJj1uJz5uKT9uKj9tK0BtLUFtLkFtL0JtMUNt"
    "MkNtM0RtNEVsNUVsNkZsOEdsOUhsOkhsO0lsPEpsPUpsPktsP0xsQExsQU1sQk5sQ05sRE9sRVBsRlFsR1FsSFJsSVNsSlNs"
    "S1RsTFVsTVVsTlZsT1dsUFdsUVhtUlltU1ptVFptVVttVVxtVlxtV11tWF5tWV5uWl9uW2BuXGFuXWFuXmJuXmNvX2NvYGRv"
    "YWVvYmVvY2ZwZGdwZWhwZWhwZmlwZ2pxaGpxaWtxamxxa21ybG1ybG5ybW9ybm9zb3BzcHFzcXJ0cnJ0cnN0c3R1dHR1dXV1"
    "dnZ2d3d2d3d3eHh3eXl3enp4e3p4fHt4fXx4fnx4fn14f354gH94gX94goB5g4F5hIJ5hYJ5hoN5h4R4iIV4iYV4ioZ4i4d4"
    "jIh4jYh4jol4j4p4kIt4kYt4kox4ko14k454lI53lY93lpB3l5F3mJJ3mZJ3mpN2m5R2nJV2nZV2npZ2n5d1oJh1oZl1opl1"
    "o5p0pJt0pZx0ppx0p51zqJ5zqZ9zqqBzq6ByrKFyraJyrqNxr6RxsKVxsaVws6ZwtKdvtahvtqlvt6luuKpuuattuqxtu61t"
    "vK5sva5svq9rv7BrwLFqwbJqwrNpw7NpxLRoxbVoxrZnx7dnyLhmyblly7llzLpkzbtjzrxjz71i0L5i0b9h0sBg08Bf1MFf"
    "1cJe1sNd18Rc2cVc2sZb28da3MhZ3chY3slY38pX4MtW4cxV4s1U5M5T5c9S5tBR59FQ6NJP6dNO6tNM69RL7dVK7tZJ79dI"
    "8NhG8dlF8tpE89tC9dxB9t0_994--N88-eA6--E4_OI2_eM0_uQ0_uU1_uY2_ug4"
)
EXPRESSION = _MAGMA[::-1][(np.linspace(0.04, 0.92, 256) * 256).astype(np.intp)]
"""Expression: darker is more; both ends differ from the white paper and from black."""
COLORMAPS = {
    "Magma": EXPRESSION,
    "Viridis": _VIRIDIS,
    "Cividis": _CIVIDIS,
    "Gray": np.repeat(np.arange(256).astype(np.uint8)[::-1, None], 3, axis=1),
}
"""uint8 [256, 3] each. All have monotonic lightness, for color-blind readers and grayscale print.

Magma and viridis: S. van der Walt, N. J. Smith (matplotlib, CC0). Cividis: Nuñez, Anderton and Renslow 2018.
"""
