import ij.ImagePlus;
import ij.gui.Roi;
import ij.io.Opener;
import ij.io.RoiDecoder;
import ij.process.ImageProcessor;
import java.io.FileInputStream;
import java.util.zip.ZipEntry;
import java.util.zip.ZipInputStream;

/** Opens a label image and a ROI set of the same cells with ImageJ, and prints a line for each ROI: its name, class,
    group, kind, area in pixels, and the area of the label of that name within it and in all. */
public class ReadWithImageJ {
    public static void main(String[] files) throws Exception {
        ImagePlus labels = new Opener().openImage(files[0]);
        ImageProcessor pixels = labels.getProcessor();
        int width = pixels.getWidth(), height = pixels.getHeight();
        int[] areas = new int[(int) pixels.getMax() + 1];
        for (int i = 0; i < width * height; i++)
            areas[(int) pixels.getf(i)]++;
        System.out.println(width + " " + height + " " + pixels.getBitDepth());
        ZipInputStream archive = new ZipInputStream(new FileInputStream(files[1]));
        for (ZipEntry entry; (entry = archive.getNextEntry()) != null;) {
            Roi roi = new RoiDecoder(archive.readAllBytes(), entry.getName()).getRoi();
            int id = Integer.parseInt(roi.getName()), left = roi.getBounds().x, top = roi.getBounds().y;
            ImageProcessor mask = roi.getMask();
            int area = 0, common = 0;
            for (int y = 0; y < roi.getBounds().height; y++)
                for (int x = 0; x < roi.getBounds().width; x++)
                    if (mask == null || mask.get(x, y) != 0) {
                        area++;
                        int column = left + x, row = top + y;
                        if (column < width && row < height && (int) pixels.getf(column, row) == id)
                            common++;
                    }
            System.out.println(id + " " + roi.getProperty("class") + " " + roi.getTypeAsString() + " " + area + " " + common
                + " " + (id < areas.length ? areas[id] : 0) + " " + entry.getName());
        }
    }
}
