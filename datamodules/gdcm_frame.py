"""Decode one frame of JPEG by gdcm, in a process of its own: a damaged frame crashes gdcm.

``python gdcm_frame.py COLUMNS ROWS BITS_STORED BITS_ALLOCATED SIGNED SAMPLES PHOTOMETRIC`` reads
the frame from standard input and writes the pixels, as they lie in memory, to standard output.
"""

import sys

import gdcm


def main() -> None:
    """Read, decode, write."""
    columns, rows, top, cell, signed, samples = map(int, sys.argv[1:-1])
    kind = gdcm.PhotometricInterpretation.GetPIType(sys.argv[-1])
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(sys.stdin.buffer.read())
    fragments.AddFragment(fragment)
    element, image = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x10)), gdcm.Image()
    element.SetValue(fragments.__ref__())
    image.SetDataElement(element)
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14))
    image.SetPixelFormat(gdcm.PixelFormat(samples, cell, top, top - 1, signed))
    sys.stdout.buffer.write(image.GetBuffer().encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    main()
