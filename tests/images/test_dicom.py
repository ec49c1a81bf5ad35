"""DICOM series, multi-frame files and segmentations: the same voxels at the same places as another library reads."""

from collections.abc import Callable
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dgbench.errors import DataError
from dgbench.images import dicom
from dgbench.images.adopt import adopt
from dgbench.images.dicom import is_dicom, read_dicom, series_files, series_of
from dgbench.images.formats import parts, read, read_case, stem

VOXELS = np.random.default_rng(0).integers(0, 2000, (5, 6, 8)).astype(np.uint16)  # (slices, rows, columns)
TURN = np.array([[0.0, 1, 0], [0, 0, -1]])  # rows run to the patient's back, columns to the feet: sagittal slices
STUDY, SERIES, FRAME = generate_uid(), generate_uid(), generate_uid()


def slice_file(path: Path, i: int, voxels: np.ndarray = VOXELS, axes: np.ndarray = TURN, **changes: object) -> Path:
    """Slice `i` of a CT series, 3 mm from the last along the normal."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["slice", str(i)])
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = STUDY, SERIES, FRAME
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "7", "Drawn^Volume", "", ""
    data.StudyDate = data.StudyTime = data.AccessionNumber = data.StudyID = data.ReferringPhysicianName = ""
    data.Modality, data.SeriesDescription, data.InstanceNumber, data.SeriesNumber = "CT", "abdomen", 90 - i, 1
    data.ImageOrientationPatient = axes.ravel().tolist()
    data.ImagePositionPatient = (np.array([-10.0, 20, 30]) + 3.0 * i * np.cross(*axes)).tolist()
    data.PixelSpacing, data.SliceThickness = [0.5, 0.75], 5
    data.Rows, data.Columns = voxels.shape[1:]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 8 * voxels.itemsize
    data.HighBit = data.BitsStored - 1
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = voxels[i].tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Five slices whose names are in another order than their places."""
    for i, name in enumerate(["c.dcm", "a.dcm", "e", "b.dcm", "d.IMA"]):
        slice_file(tmp_path / "ct" / name, i)
    (tmp_path / "ct" / "notes.txt").write_text("exported by hand")
    return tmp_path / "ct"


def test_a_series_is_ordered_by_place_and_rescaled_as_another_library_does(series):
    pixels = read(series)
    other = SimpleITK.ImageSeriesReader()
    other.SetFileNames(other.GetGDCMSeriesFileNames(str(series)))
    image = other.Execute()
    np.testing.assert_array_equal(pixels.values, SimpleITK.GetArrayFromImage(image))
    np.testing.assert_array_equal(pixels.values, VOXELS.astype(int) - 1024)
    assert pixels.values.dtype == np.int16, "Hounsfield units are whole numbers and stay so"
    assert pixels.spacing == pytest.approx(image.GetSpacing()[::-1]) == (3, 0.5, 0.75)
    for index in ((0, 0, 0), (7, 5, 4), (2, 1, 3)):
        left_back_up = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(
            pixels.affine @ [*index, 1], [-left_back_up[0], -left_back_up[1], left_back_up[2], 1]
        )


def test_a_series_is_a_folder_and_each_of_its_files_counts(series):
    assert is_dicom(series) and not is_dicom(series.parent) and not is_dicom(series / "notes.txt")
    assert stem(series) == "ct" and {"a.dcm", "e"} < {p.name for p in parts(series)}
    assert [p.name for p in series_files(series)] == ["c.dcm", "a.dcm", "e", "b.dcm", "d.IMA"]
    one = read(series / "a.dcm")
    np.testing.assert_array_equal(one.values, VOXELS[1:2].astype(int) - 1024)
    assert one.spacing == (5, 0.5, 0.75), "a slice without neighbours is as thick as its file says"


def again(series: Path, i: int = 2, name: str = "e", **changes: object) -> None:
    slice_file(series / name, i, **changes)


SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (lambda s: again(s, SeriesInstanceUID=generate_uid(), SeriesDescription="scout"),
     "several series: 'abdomen' (4 files), 'scout' (1 files)"),
    (lambda s: again(s, name="f.dcm"), "1 of its 6 slices lie where another one lies: e and f.dcm"),
    (lambda s: (s / "e").unlink(), "a.dcm and b.dcm are 6 mm apart and most are 3 mm"),
    (lambda s: again(s, axes=np.array([[1.0, 0, 0], [0, 1, 0]])), "turned against each other: d.IMA and e"),
    (lambda s: again(s, voxels=VOXELS[:, :5]), "its slices differ in size: 5 x 8 and 6 x 8"),
    (lambda s: again(s, PixelSpacing=[0.5, 0.8]), "the spacing of its pixels differs between slices"),
    (lambda s: [again(s, i, n, ImagePositionPatient=[3.0 * i, 2.0 * i, 0]) for i, n in enumerate(["c.dcm", "a.dcm", "e",
     "b.dcm", "d.IMA"])], "its axes are not at right angles"),
    (lambda s: (s / "a.dcm").write_bytes((s / "a.dcm").read_bytes()[:-20]), "a.dcm"),
    (lambda s: (s / "a.dcm").write_text("<!DOCTYPE html> sign in"), "a.dcm is no usable image: it is a web page"),
    (lambda s: again(s, Modality="RTSTRUCT", PixelData=None) or [p.unlink() for p in s.iterdir() if p.name != "e"],
     "it holds contours (RTSTRUCT), not voxels"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), SPOILT, ids=[said for _, said in SPOILT])
def test_what_is_no_volume_is_refused_by_name(series, spoil, said):
    spoil(series)
    with pytest.raises(DataError) as failure:
        read(series)
    assert said in failure.value.cause and failure.value.remedy


def test_series_in_one_folder_are_told_apart(series):
    again(series, name="s1.dcm", SeriesInstanceUID=generate_uid(), SeriesDescription="scout")
    again(series, name="s2.dcm", SeriesInstanceUID=generate_uid(), SeriesDescription="scout")
    assert {text: len(files) for text, files in series_of(series).items()} == {"abdomen": 5, "scout": 1, "scout 3": 1}


def test_slopes_may_differ_and_be_fractions(tmp_path):
    for i in range(3):
        slice_file(tmp_path / "pet" / f"{i}.dcm", i, RescaleSlope=0.5 * (i + 1), RescaleIntercept=0)
    values = read(tmp_path / "pet").values
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, VOXELS[:3] * np.array([0.5, 1, 1.5])[:, None, None])


def test_a_radiograph_stored_with_white_for_0_looks_as_all_others(tmp_path):
    bits = VOXELS % 256
    path = slice_file(tmp_path / "x.dcm", 0, bits.astype(np.uint8), PhotometricInterpretation="MONOCHROME1",
                      RescaleIntercept=0)  # fmt: skip
    np.testing.assert_array_equal(read(path).values, 255 - bits[:1].astype(int))


def enhanced(path: Path, order: list[int], times: int = 1) -> Path:
    """All slices in one file, as newer scanners write them, in the order given."""
    slice_file(path, 0)
    data = pydicom.dcmread(path)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(data, name)
    shared, frames = Dataset(), []
    shared.PlaneOrientationSequence = Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = TURN.ravel().tolist()
    shared.PixelMeasuresSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.75]
    for i in order * times:
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([Dataset()])
        frame.PixelValueTransformationSequence = Sequence([Dataset()])
        frame.PlanePositionSequence[0].ImagePositionPatient = (3.0 * i * np.cross(*TURN)).tolist()
        frame.PixelValueTransformationSequence[0].RescaleSlope = i + 1
        frame.PixelValueTransformationSequence[0].RescaleIntercept = 0
        frames.append(frame)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
    data.NumberOfFrames, data.PixelData = len(frames), VOXELS[order * times].tobytes()
    data.save_as(path)
    return path


def test_the_frames_of_an_enhanced_file_are_slices_each_with_its_own_place_and_slope(tmp_path):
    pixels = read(enhanced(tmp_path / "enhanced.dcm", [3, 0, 4, 1, 2]))
    np.testing.assert_array_equal(pixels.values, VOXELS * np.arange(1, 6)[:, None, None])
    assert pixels.spacing == pytest.approx((3, 0.5, 0.75))
    with pytest.raises(DataError, match="5 of its 10 slices lie where another one lies"):
        read(enhanced(tmp_path / "cine.dcm", [0, 1, 2, 3, 4], times=2))


REAL = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.mark.parametrize("name", ["CT_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_jp2klossless", "693_J2KI",
                                  "MR_small_jpeg_ls_lossless", "SC_ybr_full_422_uncompressed",
                                  "examples_ybr_color"])  # fmt: skip
def test_files_of_real_devices_are_read_as_another_library_reads_them(name):
    pixels, other = read(REAL / f"{name}.dcm"), SimpleITK.ReadImage(str(REAL / f"{name}.dcm"))
    np.testing.assert_array_equal(pixels.values, SimpleITK.GetArrayFromImage(other))
    assert pixels.spacing is None or pixels.spacing[1:] == pytest.approx(other.GetSpacing()[1::-1])


@pytest.mark.parametrize(
    ("name", "said"),
    [("MR_truncated", "number of bytes of pixel data is less than expected"), ("badVR", "its header makes no sense"),
     ("reportsi", "it holds no pixels (SR)"), ("no_meta", "pydicom cannot read it"),
     ("JPEG-lossy", "its pixels are compressed (JPEG Extended (Process 2 and 4))")],
)  # fmt: skip
def test_what_is_broken_or_no_image_among_real_files_is_refused(name, said):
    with pytest.raises(DataError) as failure:
        read(REAL / f"{name}.dcm")
    assert said in failure.value.cause


def test_frames_whose_distance_nobody_says_have_no_spacing(tmp_path):
    """A dose grid or a film: one millimetre would be a guess."""
    assert read(REAL / "rtdose.dcm").spacing is None


# --- masks beside a series -------------------------------------------------------------------------------------------

LABELS = np.zeros(VOXELS.shape, np.uint8)
LABELS[1:4, 1:4, 2:7], LABELS[2, 2, 3:5] = 1, 2


@pytest.mark.parametrize("turn", [(1, 1, 1), (1, -1, 1), (-1, 1, -1)])
def test_a_mask_that_a_converter_turned_is_laid_onto_the_series(series, tmp_path, turn):
    """dcm2niix turns the rows over; the header says so, and the voxels are the same."""
    matrix = read(series).affine @ np.diag([*turn, 1])
    matrix[:3, 3] = (read(series).affine @ [*((n - 1) * (t < 0) for n, t in zip((8, 6, 5), turn, strict=True)), 1])[:3]
    stored = LABELS.T[tuple(slice(None, None, t) for t in turn)].transpose(1, 0, 2)
    nibabel.save(nibabel.Nifti1Image(stored, matrix[:, [1, 0, 2, 3]]), tmp_path / "mask.nii.gz")
    _, (mask,) = read_case(series, [tmp_path / "mask.nii.gz"])
    np.testing.assert_array_equal(mask, LABELS)


def test_a_mask_between_the_voxels_of_the_series_is_refused(series, tmp_path):
    matrix = read(series).affine.copy()
    matrix[:3, 3] += 0.3
    nibabel.save(nibabel.Nifti1Image(LABELS.T, matrix), tmp_path / "mask.nii.gz")
    with pytest.raises(DataError, match="lie differently in space"):
        read_case(series, [tmp_path / "mask.nii.gz"])


def segmentation(series: Path, path: Path, masks: np.ndarray) -> Path:
    """A DICOM-SEG of the bool masks (D, H, W, segments), written by highdicom, which leaves empty slices out."""
    code = pydicom.sr.coding.Code("123037004", "SCT", "Anatomical Structure")
    segments = [
        highdicom.seg.SegmentDescription(i + 1, name, code, code, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)
        for i, name in enumerate(["organ", "lesion"])
    ]
    highdicom.seg.Segmentation(
        [pydicom.dcmread(p) for p in series_files(series)], masks, highdicom.seg.SegmentationTypeValues.BINARY,
        segments, generate_uid(), 2, generate_uid(), 1, "dgbench", "drawn", "1", "0",
    ).save_as(path)  # fmt: skip
    return path


def test_a_dicom_segmentation_is_an_index_mask_on_the_whole_series(series, tmp_path):
    apart = np.stack([LABELS == 1, LABELS == 2], axis=-1)
    path = segmentation(series, tmp_path / "seg.dcm", apart)
    assert len(read(path, mask=True).values) == 3, "the empty slices are not in the file"
    _, (mask,) = read_case(series, [path])
    np.testing.assert_array_equal(mask, LABELS)
    # Beside its series, as many tools save it: the image is the one, the mask the other.
    beside = path.rename(series / "1-1.dcm")
    assert {text: len(files) for text, files in series_of(series).items()} == {"abdomen": 5}
    np.testing.assert_array_equal(read(series).values, VOXELS.astype(int) - 1024)
    image, (mask,) = read_case(series, [series])
    np.testing.assert_array_equal(mask, LABELS)
    (row,) = adopt(series.parent).rows
    assert (row["image"], row["mask"]) == (str(series), str(beside))
    overlapping = segmentation(series, tmp_path / "overlap.dcm", np.stack([LABELS > 0, LABELS == 2], axis=-1))
    with pytest.raises(DataError, match="cannot make one volume of its segments") as failure:
        read(overlapping, mask=True)
    assert "one mask file for each structure" in failure.value.remedy


def test_without_pydicom_one_line_says_what_to_install(series, monkeypatch):
    monkeypatch.setitem(dicom.library.__globals__["importlib"].sys.modules, "pydicom", None)
    with pytest.raises(DataError, match="can only be read with pydicom") as failure:
        read_dicom(series)
    assert failure.value.remedy == "pip install 'dgbench[dicom]'"
