"""Decoded frames become images: colours, orientation, shape of pixels, odd sizes and formats, what is too large."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from cavmae_sync_hf import MediaError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.model.media_images_cavmae_sync import FrameConverter
from cavmae_sync_hf.model.media_source_cavmae_sync import MAX_FRAME_PIXELS
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from helpers.clips import numbered_frame, numbers, write_clip

LIMITED, FULL = 1, 2
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (180, 180, 20), (255, 255, 255), (0, 0, 0), (16, 235, 128)]
# Weights of red and blue in the luma of each matrix, ITU-T H.273.
WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


def as_yuv(rgb, matrix, colour_range, depth):
    """Y, U and V of a colour by the equations of H.273."""
    red, green, blue = (value / 255 for value in rgb)
    of_red, of_blue = WEIGHTS[matrix]
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    u, v = (blue - luma) / (2 * (1 - of_blue)), (red - luma) / (2 * (1 - of_red))
    if colour_range == FULL:
        return tuple(
            round(value * (2**depth - 1)) + offset
            for value, offset in zip((luma, u, v), (0, *[2 ** (depth - 1)] * 2), strict=True)
        )
    return tuple(round(value * 2 ** (depth - 8)) for value in (219 * luma + 16, 224 * u + 128, 224 * v + 128))


def flat_frame(values, pixel_format, depth, size=(64, 48)):
    """A frame of one colour."""
    frame = av.VideoFrame(*size, pixel_format)
    for plane, value in zip(frame.planes, values, strict=True):
        dtype = np.dtype("<u2" if depth > 8 else "u1")
        plane.update(np.full(plane.buffer_size // dtype.itemsize, value, dtype).tobytes())
    return frame


@pytest.mark.parametrize("colour_range", [0, LIMITED, FULL])
@pytest.mark.parametrize(
    ("named", "matrix"), [(2, 6), (1, 1), (4, 4), (5, 6), (6, 6), (7, 7), (9, 9), (3, 6), (10, 9), (99, 6)]
)
@pytest.mark.parametrize(
    ("pixel_format", "depth"), [("yuv420p", 8), ("yuv444p", 8), ("yuv420p10le", 10), ("yuv422p12le", 12)]
)
def test_frame_converter__colours_follow_matrix_and_range(pixel_format, depth, named, matrix, colour_range):
    # Without a name BT.601 and limited range hold; BT.2020 with constant luminance (10) is shown as that without.
    for colour in COLOURS:
        frame = flat_frame(as_yuv(colour, matrix, colour_range, depth), pixel_format, depth)
        frame.colorspace, frame.color_range = named, colour_range
        frame.color_trc, frame.color_primaries = 16, 9  # PQ and BT.2020: levels are not mapped
        image = FrameConverter("clip.mp4")(frame)
        assert np.abs(image.reshape(-1, 3).mean(axis=0) - colour).max() <= 4


@pytest.mark.parametrize(("primaries", "matrix"), [(1, 1), (9, 9), (6, 6), (2, 6)])
def test_frame_converter__matrix_that_follows_from_the_primaries(primaries, matrix):
    frame = flat_frame(as_yuv((200, 30, 30), matrix, LIMITED, 8), "yuv444p", 8)
    frame.colorspace, frame.color_primaries = 12, primaries
    assert np.abs(FrameConverter("clip.mp4")(frame)[0, 0].astype(int) - (200, 30, 30)).max() <= 2


def test_frame_converter__full_range_by_format():
    frame = flat_frame(as_yuv((200, 30, 30), 6, FULL, 8), "yuvj420p", 8)
    assert np.abs(FrameConverter("clip.mp4")(frame)[0, 0].astype(int) - (200, 30, 30)).max() <= 2


@pytest.mark.parametrize(
    ("options", "matrix"),
    [
        ({}, 6),
        ({"colormatrix": "bt709"}, 1),
        ({"colormatrix": "bt2020c"}, 9),
        ({"colormatrix": "bt709", "fullrange": "on"}, 1),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_decode_media__colours_of_files(folder, suffix, options, matrix):
    colour_range = FULL if "fullrange" in options else LIMITED
    values = as_yuv((200, 30, 30), matrix, colour_range, 8)
    planes = np.concatenate([np.full(48 * 64, values[0]), np.full(24 * 32, values[1]), np.full(24 * 32, values[2])])
    parameters = ":".join(f"{name}={value}" for name, value in options.items())
    path = write_clip(
        folder / f"colours{len(options)}{matrix}.{suffix}",
        num_frames=25,
        audio=False,
        frame=lambda number, time: planes.astype(np.uint8).reshape(72, 64),
        frame_format="yuv420p",
        video_options={"crf": "1"} | ({"x264-params": parameters} if parameters else {}),
    )
    shown = decode_media(path, num_frames=1, want_audio=False).frames[0].numpy()
    assert np.abs(shown.mean(axis=(1, 2)) - (200, 30, 30)).max() <= 4


@pytest.mark.parametrize("matrix", [8, 11, 14])
def test_frame_converter__colours_that_no_matrix_gives_are_refused(matrix):
    frame = flat_frame((128, 128, 128), "yuv420p", 8)
    frame.colorspace = matrix
    with pytest.raises(MediaError, match=rf"clip\.mp4: .*transform {matrix} of ITU-T H.273"):
        FrameConverter("clip.mp4")(frame)


def test_frame_converter__formats_that_would_end_the_process_are_refused():
    with pytest.raises(MediaError, match=r"clip\.mp4: frames of format yaf32le"):
        FrameConverter("clip.mp4")(av.VideoFrame(64, 48, "yaf32le"))


def corners(number, time):
    """Red top left, green top right, blue bottom left, white bottom right."""
    frame = np.zeros((48, 64, 3), dtype=np.uint8)
    frame[:24, :32, 0] = frame[:24, 32:, 1] = frame[24:, :32, 2] = 230
    frame[24:, 32:] = 230
    return frame


def write_oriented(path, degrees, hflip=False, vflip=False, aspect=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        frame = av.VideoFrame.from_ndarray(corners(0, 0), format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("hflip", "vflip"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270, 3, 100])
def test_decode_media__turned_and_mirrored_video_is_shown_upright(folder, degrees, hflip, vflip):
    path = write_oriented(folder / f"turned{degrees}{hflip}{vflip}.mp4", degrees, hflip, vflip)
    expected = np.rot90(corners(0, 0), round(degrees / 90))  # counterclockwise; mirrored after that
    expected = expected[:: -1 if vflip else 1, :: -1 if hflip else 1]
    shown = decode_media(path, num_frames=1, want_audio=False).frames[0].permute(1, 2, 0).numpy()
    assert shown.shape == expected.shape and np.abs(shown.astype(int) - expected).mean() < 4


class _OddSideData:
    """A frame with a kind of side data that PyAV does not know."""

    def __init__(self, frame, rotation):
        self._frame, self.rotation = frame, rotation

    def __getattr__(self, name):
        return getattr(self._frame, name)

    @property
    def side_data(self):
        raise ValueError("29 is not a valid Type")


@pytest.mark.parametrize("rotation", [0, 90, 180, -180, -90])
def test_frame_converter__side_data_that_is_not_known(rotation):
    frame = _OddSideData(av.VideoFrame.from_ndarray(corners(0, 0), format="rgb24"), rotation)
    assert np.array_equal(FrameConverter("clip.mov")(frame), np.rot90(corners(0, 0), rotation // 90))


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [
        (Fraction(4, 3), (48, 85)),
        (Fraction(3, 4), (64, 64)),
        (Fraction(2), (48, 128)),
        (Fraction(1), (48, 64)),
        (Fraction(200, 199), (48, 64)),  # rounding of an encoder
        (Fraction(20), (48, 64)),  # impossible
    ],
)
@pytest.mark.parametrize(("suffix", "degrees"), [("mp4", 0), ("mp4", 90), ("mkv", 0)])
def test_decode_media__pixels_that_are_not_square(folder, suffix, degrees, aspect, shape):
    path = write_oriented(folder / f"aspect{float(aspect):.3f}_{degrees}.{suffix}", degrees, aspect=aspect)
    image = decode_media(path, num_frames=1, want_audio=False).frames[0]
    assert image.shape == (3, *(shape[::-1] if degrees else shape))
    small = next(iter_media(path, want_audio=False, hop=0.04, short_side=24)).frames[0]
    assert min(small.shape[1:]) == 24
    assert small.shape[1] / small.shape[2] == pytest.approx(image.shape[1] / image.shape[2], rel=0.03)
    expected = np.rot90(corners(0, 0), degrees // 90)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.abs(image.numpy()[:, [0, 0, -1, -1], [0, -1, 0, -1]].T.astype(int) - expected).max() < 12


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 1), (641, 479), (65, 49)])
@pytest.mark.parametrize(
    ("suffix", "codec", "pixel_format"),
    [("mkv", "ffv1", "yuv420p"), ("mkv", "ffv1", "yuv444p"), ("mkv", "ffv1", "gray"), ("mov", "png", "rgb24")],
)
def test_decode_media__odd_sizes(folder, size, suffix, codec, pixel_format):
    path = write_clip(
        folder / f"{size[0]}x{size[1]}{pixel_format}.{suffix}",
        num_frames=2,
        size=size,
        audio=False,
        video_codec=codec,
        pixel_format=pixel_format,
        frame=lambda number, time: np.full((size[1], size[0], 3), 150, dtype=np.uint8),
    )
    media = decode_media(path, num_frames=2, want_audio=False)
    assert media.frames.shape == (2, 3, size[1], size[0]) and (media.frames.int() - 150).abs().max() <= 3
    small = decode_media(path, num_frames=1, want_audio=False, short_side=8).frames
    assert min(small.shape[-2:]) == 8


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("twelve_bit.mkv", {"video_codec": "ffv1", "pixel_format": "yuv422p12le"}),
        ("sixteen_bit.mkv", {"video_codec": "ffv1", "pixel_format": "rgb48le"}),
        ("planar_rgb.mkv", {"video_codec": "ffv1", "pixel_format": "gbrp10le"}),
        ("grey16.mkv", {"video_codec": "ffv1", "pixel_format": "gray16le"}),
        ("alpha.mkv", {"video_codec": "ffv1", "pixel_format": "yuva420p"}),
        ("prores.mov", {"video_codec": "prores_ks", "pixel_format": "yuva444p10le"}),
        ("palette.gif", {"video_codec": "gif", "pixel_format": "rgb8"}),
        ("png.mov", {"video_codec": "png", "pixel_format": "rgba"}),
        ("moving.apng", {"video_codec": "apng", "pixel_format": "rgb24"}),
        (
            "hevc10.mp4",
            {
                "video_codec": "libx265",
                "pixel_format": "yuv420p10le",
                "video_options": {"x265-params": "log-level=none"},
            },
        ),
        ("h264_422.mp4", {"pixel_format": "yuv422p10le"}),
        ("full.avi", {"video_codec": "mjpeg", "pixel_format": "yuvj420p"}),
        ("raw.avi", {"video_codec": "rawvideo", "pixel_format": "bgr24"}),
        ("interlaced.mpg", {"video_codec": "mpeg2video", "video_options": {"flags": "+ildct+ilme"}}),
    ],
)
def test_decode_media__formats_of_pixels(folder, name, options):
    media = decode_media(write_clip(folder / name, seconds=1, audio=False, **options), num_frames=3, want_audio=False)
    assert media.frames.shape == (3, 3, 48, 64)
    middle = media.frames[:, :, 36, 32].float().mean(axis=0)
    expected = numbered_frame(0)[36, 32].astype(float)
    if "grey" not in name:
        assert np.abs(middle.numpy() - expected).max() < (40 if name.endswith("gif") else 8)
    assert len(set(numbers(media))) == 3


def test_frame_converter__fields_are_scaled_together():
    stripes = np.zeros((96, 64, 3), dtype=np.uint8)
    stripes[::2] = 220
    codec = av.CodecContext.create("mpeg2video", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 96, "yuv420p", Fraction(1, 25)
    codec.options = {"flags": "+ildct+ilme", "qmin": "1", "qmax": "2"}
    frame = av.VideoFrame.from_ndarray(stripes, format="rgb24").reformat(format="yuv420p")
    frame.pts = 0
    packets = codec.encode(frame) + codec.encode(None)
    decoder = av.CodecContext.create("mpeg2video", "r")
    decoded = [frame for packet in [*packets, None] for frame in decoder.decode(packet)][0]
    assert decoded.interlaced_frame
    assert np.abs(np.diff(FrameConverter("clip.mpg")(decoded)[..., 0].astype(int), axis=0)).min() > 150
    small = FrameConverter("clip.mpg", short_side=32)(decoded)[4:-4].astype(int)
    assert small.shape == (40, 32, 3) and np.ptp(small) < 30  # both fields in each line


@pytest.mark.parametrize("suffix", ["h264", "ts"])
@pytest.mark.parametrize(("first", "second"), [((64, 48), (128, 96)), ((128, 96), (64, 48)), ((64, 48), (48, 64))])
def test_decode_media__a_size_that_changes_on_the_way(folder, suffix, first, second):
    parts = [
        write_clip(folder / f"{size[0]}x{size[1]}.{suffix}", seconds=1, size=size, audio=False).read_bytes()
        for size in (first, second)
    ]
    path = folder / f"changing{first[0]}{second[0]}.{suffix}"
    path.write_bytes(b"".join(parts))
    media = decode_media(path, num_frames=10, want_audio=False)
    assert media.frames.shape == (10, 3, first[1], first[0])
    assert media.duration == pytest.approx(2.0, abs=0.1)
    assert numbers(media) == pytest.approx([2, 7, 12, 17, 22] * 2, abs=1)


def test_frame_converter__an_orientation_that_changes_on_the_way():
    frame = av.VideoFrame.from_ndarray(corners(0, 0), format="rgb24")
    convert = FrameConverter("clip.mov")
    assert convert(_OddSideData(frame, 0)).shape == (48, 64, 3)
    turned = convert(_OddSideData(frame, 90))
    assert turned.shape == (48, 64, 3)
    assert np.array_equal(
        turned[[0, 0, -1, -1], [0, -1, 0, -1]], np.rot90(corners(0, 0))[[0, 0, -1, -1], [0, -1, 0, -1]]
    )


def test_frame_converter__a_mere_line_is_not_scaled_without_bound():
    image = FrameConverter("line.mkv", short_side=224)(av.VideoFrame(16000, 1, "gray"))
    assert image.shape[0] * image.shape[1] <= 1.01 * MAX_FRAME_PIXELS


@pytest.mark.parametrize("read", [decode_media, lambda path, **options: list(iter_media(path, **options))])
def test_decode_media__frames_of_any_size_are_not_decoded(tmp_path, read):
    # FFmpeg itself would take both, and some GB of memory.
    path = write_clip(tmp_path / "huge.gif", num_frames=3, audio=False, video_codec="gif", pixel_format="rgb8")
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 12000, 12000)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"huge\.gif: "):
        read(path, want_audio=False)
    path = tmp_path / "huge.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 12000, 12000, "gray"
        container.start_encoding()
        packet = av.Packet(b"0" * 1000)
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 25)
        container.mux(packet)
    with pytest.raises(MediaError, match=r"huge\.mkv: "):
        read(path, want_audio=False)
