"""Pictures in: decoding with Pillow, validation, antialiased resizing.

Everything that enters becomes float32 RGB in [0, 1] of shape (H, W, 3). Files are untrusted: only four
decoders are open, the size in the header is checked before a pixel is decoded, and whatever a decoder
raises on a broken file becomes an `InputError` that names the file and the reason.
"""

import io
import os
import threading
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from fsad.errors import InputError, display_name

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
#: Pillow's own limit, above which it warns of a "decompression bomb" (and refuses above twice as much).
MAX_PIXELS: int = Image.MAX_IMAGE_PIXELS or 89_478_485

# Image.open knows no size limit per call, only a module-wide one: it is lifted under this lock, while
# the header is read, and the size compared with our limit instead.
_open_lock = threading.Lock()

ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray | torch.Tensor


def list_images(folder: str | os.PathLike) -> list[Path]:
    """All picture files (by suffix) under `folder` and its subfolders, sorted by relative path.

    Hidden files and folders (`.x`) are left out. Raises `InputError` if the folder does not exist or holds
    no pictures, OSError if a subfolder cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"The picture folder {display_name(folder)} {found}.")
    paths = []
    for root, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if name[0] != "."]
        paths += [Path(root, n) for n in names if n.lower().endswith(SUFFIXES) and n[0] != "."]
    if not paths:
        looked = ", ".join(SUFFIXES)
        raise InputError(f"The folder {display_name(folder)} holds no pictures (looked for {looked}).")
    return sorted(paths, key=lambda p: os.fsencode(p.relative_to(folder)))


def load_image(source: ImageLike, max_pixels: int | None = None, background: float = 1) -> np.ndarray:
    """One picture as float32 (H, W, 3), RGB in [0, 1].

    source: a path, the bytes of a file, a PIL image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4),
        or a tensor (H, W), (1, H, W) or (3, H, W). Arrays and tensors: uint8 (scaled by 255),
        uint16 (by 65535), bool, or floating point already in [0, 1].
    max_pixels: files and PIL images with more pixels are refused before decoding (default `MAX_PIXELS`).
    background: the grey that transparency is laid over, in [0, 1].

    The EXIF orientation is applied. Grey is repeated in three channels, 16-bit grey keeps its depth,
    CMYK is converted; of files with several frames the first one counts.
    Raises `InputError`, which names the source and the reason.
    """
    array = _load(source, MAX_PIXELS if max_pixels is None else max_pixels)
    if array.shape[2] == 4:
        array = array[:, :, :3] * array[:, :, 3:] + background * (1 - array[:, :, 3:])
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)


def _load(source: ImageLike, limit: int) -> np.ndarray:
    """float32 (H, W, 1), (H, W, 3), or with transparency (H, W, 4)."""
    if isinstance(source, torch.Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, "array")
    if isinstance(source, Image.Image):
        try:
            return _decode(source, limit, "the PIL image")
        except InputError:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"the PIL image cannot be decoded: {error}") from error
    if isinstance(source, bytes):
        return _from_file(io.BytesIO(source), limit, "the given bytes")
    if not isinstance(source, (str, os.PathLike)):
        expected = "a path, bytes, a PIL image, an array or a tensor"
        raise InputError(f"Got {type(source).__name__} for a picture; expected {expected}.")
    try:
        with open(source, "rb") as file:
            return _from_file(file, limit, display_name(source))
    except OSError as error:
        raise InputError(f"{display_name(source)}: {error.strerror or error}") from error


def resize(array: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """float32 (H, W, C) or (H, W), resized, bilinear and antialiased; `size` is h = w or (h, w)."""
    shape = (size, size) if isinstance(size, int) else tuple(size)
    if array.shape[:2] == shape:
        return array
    if array.ndim == 2:
        return resize(array[:, :, None], size)[:, :, 0]
    batch = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None]
    out = torch.nn.functional.interpolate(batch, shape, mode="bilinear", antialias=True)
    return out[0].permute(1, 2, 0).contiguous().numpy()


def _raise(error: OSError) -> None:
    raise error


def _from_file(file: IO[bytes], limit: int, name: str) -> np.ndarray:
    if not file.read(1):
        raise InputError(f"{name}: the file is empty (0 bytes).")
    file.seek(0)
    # A damaged file makes the decoders raise nearly anything (struct.error, SyntaxError, KeyError ...).
    try:
        with _open_lock:
            saved, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(file, formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = saved
        with image:
            return _decode(image, limit, name)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a PNG, JPEG, BMP or TIFF picture.") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{name}: damaged or cut off ({reason}).") from error


def _decode(image: Image.Image, limit: int, name: str) -> np.ndarray:
    width, height = image.size
    if width * height > limit:
        raise InputError(
            f"{name}: {width} x {height} is {width * height:,} pixels, more than the {limit:,} allowed "
            "(raise --max-pixels, or max_pixels=, if the file is trusted)."
        )
    if width < 1 or height < 1:
        raise InputError(f"{name}: the picture is {width} x {height} pixels; at least 1 x 1 expected.")

    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey: "I;16", "I;16B", or "I" from older Pillows
        array = np.asarray(image)
        if array.size and (array.min() < 0 or array.max() > 65535):
            raise InputError(f"{name}: 32-bit grey values; save the picture with 8 or 16 bits.")
        return _from_array(array.astype(np.uint16), name)
    if image.mode == "F":
        raise InputError(f"{name}: floating-point grey values; save the picture with 8 or 16 bits.")
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return _from_array(np.asarray(image), name)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise InputError(f"{name}: shape {array.shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).")
    if array.dtype in (np.uint8, np.uint16):
        array = array.astype(np.float32) / np.iinfo(array.dtype).max
    elif array.dtype == np.bool_ or np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise InputError(
                f"{name}: values from {low:.4g} to {high:.4g}; floating-point pictures must lie in [0, 1] "
                "(divide 8-bit values by 255)."
            )
    else:
        raise InputError(f"{name}: dtype {array.dtype}; expected uint8, uint16, bool or floating point.")
    return array


def _from_tensor(tensor: torch.Tensor) -> np.ndarray:
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3)):
        raise InputError(f"tensor: shape {tuple(tensor.shape)}; expected (H, W), (1, H, W) or (3, H, W).")
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy knows no bfloat16
    return _from_array(array.transpose(1, 2, 0) if array.ndim == 3 else array, "tensor")
